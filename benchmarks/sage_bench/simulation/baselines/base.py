"""What a routing baseline must do: choose an engine at once, for each request, when it arrives.

Like a load balancer in front of engines that queue by themselves: nothing is held, nothing is
shed, an engine that is down is left out, and a request that failed before its first token goes to
another engine once.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FirstToken,
    Reject,
    RequestInfo,
)


class Engine:
    """An engine as a baseline sees it."""

    __slots__ = ("in_flight", "index", "name", "pending", "running_tokens", "spec", "up")

    def __init__(self, spec: EngineSpec, index: int) -> None:
        self.spec, self.name, self.index = spec, spec.name, index
        self.up = True
        self.in_flight = 0
        self.pending = 0
        """Prompt tokens sent that have no first token yet."""
        self.running_tokens = 0
        """Prompt tokens of all requests inside."""


class _Flight:
    __slots__ = ("attempts", "engine", "info", "started", "uncached")

    def __init__(self, info: RequestInfo) -> None:
        self.info = info
        self.engine: Engine | None = None
        self.uncached = 0
        self.started = False
        self.attempts = 0


class Baseline(ABC):
    """What all baselines have: a name, options that are checked, and handlers by event."""

    name: ClassVar[str]
    foresees: ClassVar[bool] = False
    """It is told what no gateway can know, as ``future``: for comparison with the best possible."""

    def __init__(self) -> None:
        self.now = 0.0
        self._handlers: dict[type, Callable[[Any], list[Action]]] = {}

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """Refuse options that the baseline does not have.

        Raises:
            SettingsError: names the nearest known one.
        """
        given = ("self", "future") if cls.foresees else ("self",)
        known = [name for name in inspect.signature(cls.__init__).parameters if name not in given]
        for name in options:
            if name not in known:
                raise SettingsError(
                    f"baseline {cls.name!r} has no option {name!r}.",
                    hint=f"{near_name(name, known)}Known: {', '.join(known) or 'none'}.",
                )

    def handle(self, event: Event, now: float) -> list[Action]:
        """The controller's door; events that a load balancer does not hear of change nothing."""
        self.now = now
        handler = self._handlers.get(type(event))
        return handler(event) if handler is not None else []


class RoutingBaseline(Baseline):
    """Base of the load balancers; a subclass says which engine by :meth:`choose`."""

    def __init__(self) -> None:
        super().__init__()
        self._engines: dict[str, Engine] = {}
        self._pools: dict[str, list[Engine]] = {}
        self._flights: dict[str, _Flight] = {}
        self._handlers = {
            Arrival: self._on_arrival,
            FirstToken: self._on_first_token,
            Done: self._on_done,
            Failed: self._on_failed,
            Cancel: self._on_cancel,
            EngineAdded: self._on_engine_added,
            EngineReport: self._on_engine_report,
        }

    @abstractmethod
    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        """One of ``engines``: those that serve the model and are up; at least one."""

    def uncached(self, info: RequestInfo, engine: Engine) -> int:
        """Prompt tokens that ``engine`` will have to compute, as far as the baseline knows."""
        return info.prompt_tokens

    def sent(self, info: RequestInfo, engine: Engine) -> None:
        """Take note that ``engine`` gets the request."""

    def _on_engine_added(self, event: EngineAdded) -> list[Action]:
        engine = Engine(event.spec, len(self._engines))
        self._engines[engine.name] = engine
        for model in event.spec.models:
            self._pools.setdefault(model, []).append(engine)
        return []

    def _on_engine_report(self, event: EngineReport) -> list[Action]:
        engine = self._engines.get(event.engine)
        if engine is not None:
            engine.up = event.state is EngineState.READY
        return []

    def _on_arrival(self, event: Arrival) -> list[Action]:
        flight = self._flights[event.request.request_id] = _Flight(event.request)
        return self._send(flight)

    def _send(self, flight: _Flight) -> list[Action]:
        info = flight.info
        failed = flight.engine
        engines = [e for e in self._pools.get(info.model, ()) if e.up and e is not failed]
        if not engines:
            del self._flights[info.request_id]
            return [Reject(info.request_id, 503, "no_engine_available", "No engine.", 1)]
        engine = self.choose(info, engines)
        flight.engine, flight.started = engine, False
        flight.attempts += 1
        flight.uncached = self.uncached(info, engine)
        engine.in_flight += 1
        engine.pending += flight.uncached
        engine.running_tokens += info.prompt_tokens
        self.sent(info, engine)
        return [Dispatch(info.request_id, engine.name, flight.attempts)]

    def _leave(self, flight: _Flight) -> None:
        engine = flight.engine
        if engine is None:
            return
        engine.in_flight -= 1
        engine.running_tokens -= flight.info.prompt_tokens
        if not flight.started:
            engine.pending -= flight.uncached

    def _on_first_token(self, event: FirstToken) -> list[Action]:
        flight = self._flights.get(event.request_id)
        if flight is not None and flight.engine is not None and not flight.started:
            flight.started = True
            flight.engine.pending -= flight.uncached
        return []

    def _on_done(self, event: Done) -> list[Action]:
        flight = self._flights.pop(event.request_id, None)
        if flight is not None:
            self._leave(flight)
        return []

    def _on_failed(self, event: Failed) -> list[Action]:
        flight = self._flights.get(event.request_id)
        if flight is None:
            return []
        self._leave(flight)
        if event.retryable and flight.attempts < 2:
            return self._send(flight)
        del self._flights[event.request_id]
        return [Reject(event.request_id, 502, "engine_failed", event.message)]

    def _on_cancel(self, event: Cancel) -> list[Action]:
        flight = self._flights.pop(event.request_id, None)
        if flight is None or flight.engine is None:
            return []
        self._leave(flight)
        return [Abort(event.request_id, flight.engine.name, "client gone")]
