"""One state per engine, out of what probes, operators and cooldown say of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sage_gateway.scheduler import Scheduler, clock
from sage_prefect.control_plane.events import EngineState

_AWAY = frozenset({EngineState.SUSPECT, EngineState.DOWN})


@dataclass(slots=True)
class _Said:
    """What is said of one engine."""

    health: EngineState = EngineState.READY
    why: str = ""
    drained: bool = False
    rests_until: float | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> EngineState:
        """An operator's word is above a probe's, a probe's above the end of a rest."""
        if self.drained:
            return EngineState.DRAINING
        if self.health in _AWAY:
            return self.health
        return EngineState.SUSPECT if self.rests_until is not None else self.health


class EngineStates:
    """Tells the control plane; each voice is heard without undoing what another has said."""

    def __init__(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._said: dict[str, _Said] = {}

    def report(self, engine: str, state: EngineState, detail: str = "") -> None:
        """What a probe, or the lack of an answer, says."""
        said = self._of(engine)
        said.health, said.why = state, detail
        self.tell(engine)

    def drain(self, engine: str) -> None:
        """It finishes what it has and gets nothing new."""
        self._of(engine).drained = True
        self.tell(engine)

    def undrain(self, engine: str) -> None:
        """It takes requests again, unless it is away."""
        self._of(engine).drained = False
        self.tell(engine)

    def rest(self, engine: str, seconds: float) -> None:
        """It has failed too often: it gets nothing for a while."""
        said = self._of(engine)
        if said.timer is not None:
            said.timer.cancel()
        said.rests_until = clock() + seconds
        said.timer = self._loop.call_later(seconds, self._rested, engine)
        self.tell(engine)

    def tell(self, engine: str) -> None:
        """Say its state to the control plane (again, where it was registered anew)."""
        said = self._of(engine)
        resting = said.rests_until is not None and said.health not in _AWAY
        self._scheduler.report(engine, said.state, "cools down" if resting else said.why)
        if said.state in _AWAY:
            self._scheduler.send_elsewhere(engine)

    def forget(self, engine: str) -> None:
        """It was removed, or registered anew by somebody who knows it."""
        said = self._said.pop(engine, None)
        if said is not None and said.timer is not None:
            said.timer.cancel()

    def is_drained(self, engine: str) -> bool:
        """Whether an operator has drained it."""
        said = self._said.get(engine)
        return said is not None and said.drained

    def public(self, engine: str) -> dict[str, Any]:
        """For the management API."""
        said = self._said.get(engine) or _Said()
        rests = None if said.rests_until is None else max(0.0, said.rests_until - clock())
        return {"drained": said.drained, "cools_down_s": rests}

    def close(self) -> None:
        for engine in list(self._said):
            self.forget(engine)

    def _of(self, engine: str) -> _Said:
        return self._said.setdefault(engine, _Said())

    def _rested(self, engine: str) -> None:
        said = self._of(engine)
        said.rests_until = said.timer = None
        self.tell(engine)
