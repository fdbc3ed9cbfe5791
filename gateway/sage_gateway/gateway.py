"""The gateway's parts put together, and what management changes in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from sage_gateway.auth import KeyRing
from sage_gateway.batch_courier import BatchCourier
from sage_gateway.config import GatewayConfig
from sage_gateway.engines import EngineConfig, EngineRegistry
from sage_gateway.health import HealthMonitor
from sage_gateway.inference import InferenceService
from sage_gateway.metrics import EngineGauge, GatewayMetrics
from sage_gateway.policy_warnings import unused_settings
from sage_gateway.recording import Recorder
from sage_gateway.scheduler import Scheduler
from sage_prefect.control_plane.events import EngineState, TenantSpec
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.manager import ControlPlaneManager

log = logging.getLogger(__name__)


class Gateway:
    """One gateway. Build it inside a running event loop.

    Args:
        config: the checked configuration.
        keys: who may call.

    Raises:
        SettingsError: an engine of the configuration is wrong, or its event log cannot be written.
        UnknownNameError: the policy is not known.
    """

    def __init__(self, config: GatewayConfig, keys: KeyRing) -> None:
        self.config = config
        self.keys = keys
        self.manager = ControlPlaneManager(config.policy, config.scheduling)
        loop, recording = asyncio.get_running_loop(), config.recording
        self.recorder = (
            Recorder(recording.file, recording, self.manager, loop) if recording.file else None
        )
        self.scheduler = Scheduler(self.manager, loop, self.recorder)
        self.scheduler.configure(
            config.bands,
            tuple(
                TenantSpec(t.name, t.weight, t.max_queued, t.max_running) for t in config.tenants
            ),
        )
        self.engines = EngineRegistry(config.timeouts)
        self.health = HealthMonitor(self.engines, self.scheduler, config.health)
        self.metrics = GatewayMetrics(lambda: self.manager.queued, self._gauges, self.recorder)
        self.courier = BatchCourier(self.engines, self.scheduler, self.health, self.metrics)
        self.scheduler.courier = self.courier
        self.inference = InferenceService(
            self.engines, self.scheduler, self.health, self.metrics, config.server
        )
        for engine in config.engines:
            self.register(engine)

    def register(self, config: EngineConfig) -> bool:
        """Add an engine, or replace the one of its name; whether it is new.

        Raises:
            SettingsError: the engine's URL, name or key is not usable; nothing has changed.
        """
        is_new = self.engines.add(config)
        self.health.forget(config.name)
        self.scheduler.add_engine(config.spec())
        if config.origin == "management":
            # Who registers an engine at run time says that it is up.
            self.scheduler.report(config.name, EngineState.READY, "registered")
        return is_new

    def set_policy(self, name: str) -> None:
        """Switch the policy; what the configuration says in vain then is logged.

        Raises:
            UnknownNameError: the policy is not known.
        """
        self.scheduler.set_policy(name)
        for unused in unused_settings(self.config, name):
            log.warning(unused)

    def remove(self, name: str) -> bool:
        """Take an engine away; what runs in it finishes. False when there is none."""
        if not self.engines.remove(name):
            return False
        self.health.forget(name)
        self.scheduler.remove_engine(name)
        return True

    async def check_engines(self) -> None:
        """Ask all engines whether they answer, so that ``/ready`` and the first request know."""
        await asyncio.gather(*(self.health.check(engine) for engine in self.engines))

    @property
    def ready(self) -> bool:
        """Whether some engine takes requests."""
        return any(entry.state is EngineState.READY for entry in self._entries())

    def engine_states(self) -> list[dict[str, object]]:
        """For the management API: each engine with its live state."""
        listed: list[dict[str, object]] = []
        for engine in self.engines:
            entry = self.manager.ledger.get(engine.name)
            listed.append(
                {
                    **engine.config.public(),
                    "state": entry.state.value if entry is not None else "unknown",
                    "in_flight": entry.in_flight if entry is not None else 0,
                    "open_connections": engine.pool.open_connections,
                }
            )
        return listed

    async def close(self) -> None:
        """Stop probes and timers; close idle connections and the event log."""
        self.scheduler.close()
        await self.courier.close()
        await self.health.close()
        self.engines.close()
        if self.recorder is not None:
            self.recorder.close()

    def _entries(self) -> Iterator[EngineEntry]:
        return (entry for entry in self.manager.ledger if not entry.leaving)

    def _gauges(self) -> Iterator[EngineGauge]:
        for entry in self._entries():
            ready = entry.state is EngineState.READY
            yield EngineGauge(entry.name, entry.in_flight, entry.spec.max_concurrency, ready)
