"""Which engines are suspect: told by failed attempts, cleared by probes.

A refused connection makes an engine suspect at once, lost connections and time limits after
several in a row. A suspect engine gets no requests; it is probed until it answers.
"""

from __future__ import annotations

import asyncio
import logging

from sage_gateway.config import HealthConfig
from sage_gateway.engines import Engine, EngineRegistry
from sage_gateway.scheduler import Scheduler
from sage_gateway.upstream import Timeouts, UpstreamError
from sage_prefect.control_plane.events import EngineState, FailureCause

log = logging.getLogger(__name__)

_MAX_PROBE_INTERVAL_S = 10.0
_COUNTED = (FailureCause.RESET, FailureCause.TIMEOUT, FailureCause.PROTOCOL)


class HealthMonitor:
    """Counts failures by engine and probes the suspects."""

    def __init__(self, engines: EngineRegistry, scheduler: Scheduler, config: HealthConfig) -> None:
        self._engines = engines
        self._scheduler = scheduler
        self._config = config
        self._failures: dict[str, int] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

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
        log.warning("engine is suspect", extra={"fields": {"engine": name, "why": detail}})
        self._scheduler.report(name, EngineState.SUSPECT, detail)
        self._probes[name] = asyncio.get_running_loop().create_task(self._probe(engine))

    def forget(self, name: str) -> None:
        """The engine was removed, or registered anew."""
        self._failures.pop(name, None)
        probe = self._probes.pop(name, None)
        if probe is not None:
            probe.cancel()

    async def close(self) -> None:
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        self._probes.clear()

    async def _probe(self, engine: Engine) -> None:
        wait = self._config.probe_interval_s
        while True:
            await asyncio.sleep(wait)
            if await answers(engine, self._config.probe_timeout_s):
                break
            wait = min(wait * 1.5, _MAX_PROBE_INTERVAL_S)
        self._failures.pop(engine.name, None)
        del self._probes[engine.name]
        log.info("engine is back", extra={"fields": {"engine": engine.name}})
        self._scheduler.report(engine.name, EngineState.READY, "answers again")


async def answers(engine: Engine, timeout_s: float) -> bool:
    """Whether the engine answers ``GET /health``, or where it has no such path, lists models."""
    limits = Timeouts(timeout_s, timeout_s, timeout_s)
    for path in ("/health", f"{engine.address.path}/models"):
        try:
            exchange, _ = await engine.pool.request([engine.get_head(path)], limits)
            await exchange.head()
            await exchange.read_all(1 << 20)
        except UpstreamError:
            return False
        if exchange.status == 200:
            return True
        if exchange.status not in (401, 403, 404, 405):
            return False
    return False
