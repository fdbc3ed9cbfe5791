"""Which engines are suspect: told by failed attempts, cleared by probes.

A refused connection makes an engine suspect at once, lost connections and time limits after
several in a row. A suspect engine gets no requests; it is probed until it answers.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from sage_gateway.config import HealthConfig
from sage_gateway.engines import Engine, EngineRegistry
from sage_gateway.upstream import Timeouts, UpstreamError
from sage_prefect.control_plane.events import EngineState, FailureCause

log = logging.getLogger(__name__)

_MAX_PROBE_INTERVAL_S = 10.0
# Says nothing of the engine's health: it lacks the path, or wants a key for it.
_NO_SUCH_PATH = frozenset({401, 403, 404, 405, 501})
_MAX_PROBE_BYTES = 1 << 20
_COUNTED = (FailureCause.RESET, FailureCause.TIMEOUT, FailureCause.PROTOCOL)


class Reports(Protocol):
    """Who hears of engines' states."""

    def report(self, engine: str, state: EngineState, detail: str = "") -> None:
        """What a probe, or the lack of an answer, says of an engine."""


class HealthMonitor:
    """Counts failures by engine and probes the suspects."""

    def __init__(self, engines: EngineRegistry, scheduler: Reports, config: HealthConfig) -> None:
        self._engines = engines
        self._scheduler = scheduler
        self._config = config
        self._failures: dict[str, int] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def configure(self, config: HealthConfig) -> None:
        """Other limits, for what fails and is probed from now on."""
        self._config = config

    def is_suspect(self, name: str) -> bool:
        return name in self._probes

    def succeeded(self, name: str) -> None:
        """The engine answered (with whatever status)."""
        if self._failures:
            self._failures.pop(name, None)

    def failed(self, name: str, cause: FailureCause, detail: str) -> None:
        """An attempt on the engine failed."""
        engine = self._engines.get(name)
        if engine is None or name in self._probes:
            return
        if cause in _COUNTED:
            count = self._failures[name] = self._failures.get(name, 0) + 1
            if count < self._config.failures:
                return
        elif cause is not FailureCause.CONNECT:
            return
        self._suspect(engine, detail)

    async def check(self, engine: Engine) -> None:
        """Ask an engine of which nothing is known yet; one that does not answer is suspect."""
        complaint = await complaint_of(engine, self._config.probe_timeout_s)
        is_ours = self._engines.get(engine.name) is engine
        if not is_ours or engine.name in self._probes:
            return
        if complaint is not None:
            self._suspect(engine, complaint)
        else:
            self._scheduler.report(engine.name, EngineState.READY, "answers")

    def forget(self, name: str) -> None:
        """The engine was removed, or registered anew."""
        self._failures.pop(name, None)
        probe = self._probes.pop(name, None)
        if probe is not None:
            probe.cancel()

    async def close(self) -> None:
        probes = list(self._probes.values())
        self._probes.clear()
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def _suspect(self, engine: Engine, detail: str) -> None:
        log.warning("engine is suspect", extra={"fields": {"engine": engine.name, "why": detail}})
        self._scheduler.report(engine.name, EngineState.SUSPECT, detail)
        task = asyncio.get_running_loop().create_task(self._probe(engine))
        self._probes[engine.name] = task

    async def _probe(self, engine: Engine) -> None:
        wait = self._config.probe_interval_s
        while True:
            await asyncio.sleep(wait)
            complaint = await complaint_of(engine, self._config.probe_timeout_s)
            # Until Python 3.12 wait_for may swallow a cancellation: look who is asked for.
            if self._probes.get(engine.name) is not asyncio.current_task():
                return
            if complaint is None:
                break
            wait = min(wait * 1.5, _MAX_PROBE_INTERVAL_S)
        self._failures.pop(engine.name, None)
        del self._probes[engine.name]
        log.info("engine is back", extra={"fields": {"engine": engine.name}})
        self._scheduler.report(engine.name, EngineState.READY, "answers again")


async def complaint_of(engine: Engine, timeout_s: float) -> str | None:
    """What is wrong with the engine; None when it answers.

    ``GET /health`` decides where there is such a path; elsewhere any answer to a request for its
    models that is no server error will do.
    """
    limits = Timeouts(timeout_s, timeout_s, timeout_s)
    status = 0
    for path in ("/health", f"{engine.address.path}/models"):
        try:
            exchange, _ = await engine.pool.request([engine.get_head(path)], limits)
            await exchange.head()
            status = exchange.status
            _, ended = await exchange.read_all(_MAX_PROBE_BYTES)
        except UpstreamError as error:
            return error.message
        if not ended:
            exchange.abort(FailureCause.INTERNAL, "said enough")
        if status not in _NO_SUCH_PATH:
            break
    return None if status < 400 or status in _NO_SUCH_PATH else f"answers with {status}"
