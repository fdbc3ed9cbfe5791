"""The gateway's parts put together, and what management changes in them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sage_gateway.auth import KeyRing
from sage_gateway.batch_courier import BatchCourier
from sage_gateway.config import GatewayConfig
from sage_gateway.config_tracing import TracingConfig
from sage_gateway.cooldown import CooldownCounter
from sage_gateway.engine_states import EngineStates
from sage_gateway.engines import Engine, EngineConfig, EngineRegistry, Via
from sage_gateway.fallbacks import Failure
from sage_gateway.health import HealthMonitor
from sage_gateway.inference import InferenceService
from sage_gateway.key_directory import KeyDirectory
from sage_gateway.key_store import SqliteKeyStore
from sage_gateway.metrics import EngineGauge, GatewayMetrics
from sage_gateway.policy_warnings import unused_settings
from sage_gateway.recording import Recorder
from sage_gateway.reload import Changes, ConfigSource, apply
from sage_gateway.scheduler import Scheduler, clock
from sage_prefect import __version__
from sage_prefect.common.errors import SageError, SettingsError
from sage_prefect.common.paths import state_dir
from sage_prefect.control_plane.events import BandSpec, EngineState
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.manager import ControlPlaneManager

if TYPE_CHECKING:
    from sage_gateway.providers.bridge import ProviderBridge
    from sage_gateway.tracing import Tracing

log = logging.getLogger(__name__)


class Gateway:
    """One gateway. Build it inside a running event loop.

    Args:
        config: the checked configuration.
        keys: who may call.
        source: where the configuration is read again; None: it cannot be.

    Raises:
        SettingsError: an engine of the configuration is wrong, or its event log cannot be written.
        UnknownNameError: the policy is not known.
        CorruptFileError: the store of keys makes no sense.
    """

    def __init__(
        self, config: GatewayConfig, keys: KeyRing, source: ConfigSource | None = None
    ) -> None:
        self.config = config
        self.keys = keys
        self.source = source
        self.started_at = self.loaded_at = time.time()
        os.environ.update(config.environment)
        self.manager = ControlPlaneManager(config.policy, config.scheduling)
        loop, recording = asyncio.get_running_loop(), config.recording
        self.recorder = (
            Recorder(recording.file, recording, self.manager, loop) if recording.file else None
        )
        self.scheduler = Scheduler(self.manager, loop, self.recorder)
        self.replicas = config.replicas
        self.scheduler.configure(
            config.bands, tuple(self.replicas.tenant(t.spec()) for t in config.tenants)
        )
        self.directory = KeyDirectory(
            keys,
            SqliteKeyStore(config.keys.file or state_dir() / "gateway-keys.sqlite"),
            config.keys.refresh_s,
            self.configure_shares,
        )
        self.bridge: ProviderBridge | None = None
        self.engines = EngineRegistry(config.timeouts, self._via)
        self.states = EngineStates(self.scheduler, loop)
        self.health = HealthMonitor(self.engines, self.states, config.health)
        self.cooldown = CooldownCounter(config.router.cooldown, self._is_alone)
        self.metrics = GatewayMetrics(lambda: self.manager.queued, self._gauges, self.recorder)
        self.courier = BatchCourier(self.engines, self.scheduler, self.health, self.metrics)
        self.scheduler.courier = self.courier
        self.inference = InferenceService(
            self.engines,
            self.scheduler,
            self.health,
            self.metrics,
            config.server,
            config.router.fallbacks,
        )
        self.tracing = _tracing(config.tracing)
        self.inference.tracing = self.courier.tracing = self.tracing
        self.inference.cooldown = self.courier.cooldown = self._attempt_failed
        self.engines.rename(config.router.aliases)
        for engine in config.engines:
            self.register(engine)
        self.serve_providers()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.directory.start()

    # -- engines --------------------------------------------------------------------------

    def register(self, config: EngineConfig) -> bool:
        """Add an engine, or replace the one of its name, which is drained no longer; whether it is
        new.

        Raises:
            SettingsError: the engine's URL, name or key is not usable; nothing has changed.
        """
        engine = self.engines.make(config)
        self.states.forget(config.name)
        is_new = self._put(engine)
        if config.origin == "management":
            # Who registers an engine at run time says that it is up.
            self.states.report(config.name, EngineState.READY, "registered")
        return is_new

    def put_engines(self, engines: Iterable[Engine]) -> None:
        """Add or replace engines of the configuration; one that was drained stays so."""
        for engine in engines:
            was_drained = self.states.is_drained(engine.name)
            self.states.forget(engine.name)
            self._put(engine)
            if was_drained:
                self.states.drain(engine.name)

    def remove(self, name: str) -> bool:
        """Take an engine away; what runs in it finishes. False when there is none."""
        if not self.engines.remove(name):
            return False
        self.health.forget(name)
        self.cooldown.forget(name)
        self.states.forget(name)
        self.scheduler.remove_engine(name)
        return True

    def serve_providers(self) -> None:
        """Have the litellm library serve the engines that need it."""
        if self.bridge is not None:
            self.bridge.serve(
                {
                    engine.name: engine.config.provider
                    for engine in self.engines
                    if engine.config.provider is not None
                }
            )

    def _via(self, config: EngineConfig) -> Via | None:
        if config.provider is None:
            return None
        if self.bridge is None:
            from sage_gateway.providers.bridge import ProviderBridge

            self.bridge = ProviderBridge(self.config.server.shutdown_s)
        return self.bridge.via(config.name)

    def _put(self, engine: Engine) -> bool:
        is_new = self.engines.put(engine)
        self.health.forget(engine.name)
        self.cooldown.forget(engine.name)
        self.scheduler.add_engine(self.replicas.engine(engine.config.spec()))
        return is_new

    def _attempt_failed(self, name: str) -> None:
        """LiteLLM's cooldown hears of every failed attempt, whatever its cause."""
        rest_s = self.cooldown.failed(name, clock())
        if rest_s is not None:
            log.warning("engine cools down", extra={"fields": {"engine": name, "seconds": rest_s}})
            self.states.rest(name, rest_s)

    def _is_alone(self, name: str) -> bool:
        """Whether an engine is the last of a model that no other model stands in for."""
        engine = self.engines.get(name)
        if engine is None:
            return False
        rules = self.inference.fallbacks
        return any(
            not self.scheduler.may_serve(model.pool, {name})
            and not rules.after(model.name, Failure.GENERAL)
            and len(self.engines.names.pools(model.name)) < 2
            for model in engine.config.models
        )

    # -- configuration --------------------------------------------------------------------

    def configure_shares(self, bands: tuple[BandSpec, ...] = ()) -> None:
        """Tell the control plane the promises of ``bands``, and all tenants."""
        tenants = tuple(self.replicas.tenant(tenant.spec()) for tenant in self.keys.tenants)
        self.scheduler.configure(bands, tenants)

    def set_policy(self, name: str) -> None:
        """Switch the policy; what the configuration says in vain then is logged.

        Raises:
            UnknownNameError: the policy is not known.
        """
        self.scheduler.set_policy(name)
        for unused in unused_settings(self.config, name):
            log.warning(unused)

    async def reload(self) -> Changes:
        """Read the configuration file again and put it in force, all of it or nothing.

        Raises:
            SettingsError: there is no file, or it is wrong: nothing has changed.
            UnknownNameError, MissingDependencyError: the same, of a name or a package in it.
        """
        if self.source is None:
            log.error("there is no configuration file to reload")
            raise SettingsError(
                "this gateway was started without a configuration file.",
                hint="Start it with --config FILE; engines, tenants, keys and the policy can be "
                "changed by the management API.",
            )
        said = set(self.config.warnings)
        loop = asyncio.get_running_loop()
        async with self._reloading:
            try:
                # In a thread: streams go on while YAML is parsed.
                config = await loop.run_in_executor(None, self.source.load)
                changes = apply(self, config)
            except SageError as error:
                log.error("configuration not reloaded, the one before stays: %s", error)
                raise
        self.loaded_at = time.time()
        for warning in changes.warnings:
            if warning not in said:
                log.warning(warning)
        log.info("configuration reloaded", extra={"fields": changes.public()["engines"]})
        for name in (*changes.added, *changes.changed):
            engine = self.engines.get(name)
            if engine is not None:
                self._begin(self.health.check(engine))
        return changes

    def reload_soon(self) -> None:
        """:meth:`reload` for a signal: the log says what came of it."""
        self._begin(self._try_reload())

    async def _try_reload(self) -> None:
        # Logged where it was raised; nobody waits for it here.
        with contextlib.suppress(SageError):
            await self.reload()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
                    **self.states.public(engine.name),
                    "state": entry.state.value if entry is not None else "unknown",
                    "in_flight": entry.in_flight if entry is not None else 0,
                    "open_connections": engine.pool.open_connections,
                }
            )
        return listed

    def state(self) -> dict[str, object]:
        """For the management API: what is going on."""
        models: dict[str, list[str]] = {}
        for engine in self.engines:
            for name in dict.fromkeys(model.name for model in engine.config.models):
                models.setdefault(name, []).append(engine.name)
        return {
            "version": __version__,
            "started_at": self.started_at,
            "config_file": None if self.source is None else str(self.source.file),
            "config_loaded_at": self.loaded_at,
            "warnings": list(self.config.warnings),
            "policy": self.manager.policy.name,
            "ready": self.ready,
            "queued": self.manager.queued,
            "queued_bytes": self.manager.queued_bytes,
            "running": self.manager.running,
            "engines": self.engine_states(),
            "models": models,
            "aliases": {name: alias.model for name, alias in self.config.router.aliases.items()},
            "limits": self.keys.usage(),
        }

    async def close(self) -> None:
        """Stop probes and timers; close idle connections, the event log and the store of keys."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.directory.close()
        self.states.close()
        self.scheduler.close()
        await self.courier.close()
        await self.health.close()
        self.engines.close()
        if self.bridge is not None:
            await self.bridge.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.tracing is not None:
            await self.tracing.close()

    def _entries(self) -> Iterator[EngineEntry]:
        return (entry for entry in self.manager.ledger if not entry.leaving)

    def _gauges(self) -> Iterator[EngineGauge]:
        for entry in self._entries():
            ready = entry.state is EngineState.READY
            yield EngineGauge(entry.name, entry.in_flight, entry.spec.max_concurrency, ready)


def _tracing(config: TracingConfig) -> Tracing | None:
    if not config.enabled:
        return None
    from sage_gateway.tracing import Tracing  # not before it is needed: OpenTelemetry is not light

    return Tracing(config)
