"""The services of one supervisor, and the operations on them that clients may ask for."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import state_dir
from sage_prefect.platform import registry
from sage_prefect.platform.gateway_registrar import GatewayRegistrar
from sage_prefect.platform.gpus import GpuLedger
from sage_prefect.platform.port_promises import PortPromises
from sage_prefect.platform.processes import (
    ProcessId,
    end_strays,
    identify,
    reap_adopted,
    service_environment,
)
from sage_prefect.platform.registry import Record
from sage_prefect.platform.service import EngineRegistration, ServiceSpec, ServiceState
from sage_prefect.platform.service_runner import ServiceRunner, listening

log = logging.getLogger(__name__)

GATEWAY = "gateway"

Say = Callable[[str], None]


class ServiceManager:
    """Owns the services. Its public methods are the operations of the control socket."""

    def __init__(self, gpus: GpuLedger) -> None:
        self.marker = str(state_dir())
        self.runners: dict[str, ServiceRunner] = {}
        self.shutting_down = False
        self.shut = asyncio.Event()
        self._gpus = gpus
        self._ports = PortPromises()
        self._registrar = GatewayRegistrar()
        self._telling_gateway = asyncio.Lock()
        self._former: dict[str, Record] = {}
        identity = identify(os.getpid())
        assert identity is not None  # we run
        self._identity: ProcessId = identity

    # -- operations -----------------------------------------------------------------------

    def adopt_former(self) -> None:
        """End what a former supervisor left, and remember what it was told to run.

        Raises:
            ServiceError: the registry is damaged or cannot be written.
        """
        former = registry.read_registry()
        count = end_strays(self.marker, former.leaders())
        if count:
            log.warning("ended %d processes that a former supervisor left behind", count)
        for record in former.services.values():
            for name in record.state.endpoints:
                endpoints.withdraw(name)
            wanted = record.wanted
            detail = "the supervisor ended without stopping it" if wanted else record.state.detail
            update: dict[str, object] = {
                "pid": None,
                "endpoints": {},
                "registered": None,
                "detail": detail,
            }
            if record.state.status != "failed":
                update["status"] = "stopped"
            record.state = record.state.model_copy(update=update)
            record.process = None
            self._former[record.spec.name] = record
        self._persist()

    async def start(
        self, specs: Sequence[ServiceSpec], *, wait: bool, replace: bool, say: Say
    ) -> list[ServiceState]:
        """Start services, each at most once; those that run already with an equal spec stay.

        Raises:
            PortInUseError: an explicitly chosen port is taken.
            ServiceError: one runs with another spec, needs an unknown service, finds no GPU
                memory, or the registry cannot be written. Nothing is started then.
        """
        if self.shutting_down:
            raise ServiceError("the supervisor is shutting down.", hint="Try again in a moment.")
        for spec in specs:
            await self._make_way(spec, replace)
        self._check_needs(specs)
        fresh: list[ServiceRunner] = []
        try:
            for spec in specs:
                if spec.name not in self.runners:
                    fresh.append(self._prepare(spec))
            registry.write_registry(self._records(), self._identity)
        except ServiceError:
            for runner in fresh:
                self._forget(runner)
            raise
        runners = [self.runners[spec.name] for spec in specs]
        with listening(runners, say):
            for runner in fresh:
                runner.launch()
            if wait:
                await asyncio.gather(*(runner.settled() for runner in runners))
        return [runner.state() for runner in runners]

    async def stop(self, names: Iterable[str], say: Say) -> list[ServiceState]:
        """Stop services, those that others need last; returns their last states.

        Raises:
            ServiceError: a name is unknown; nothing is stopped then.
        """
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in self.runners and name not in self._former:
                known = ", ".join((*self.runners, *self._former)) or "none"
                raise ServiceError(f"no service {name!r} runs.", hint=f"Known: {known}.")
        states = {name: self._former.pop(name).state for name in wanted if name not in self.runners}
        remaining = {name: self.runners[name] for name in wanted if name in self.runners}
        while remaining:
            needed = {need for runner in remaining.values() for need in runner.spec.after}
            wave = [runner for runner in remaining.values() if runner.name not in needed]
            for runner in wave:
                if runner.active:
                    say(f"{runner.name}: stopping")
            await asyncio.gather(*(runner.stop() for runner in wave))
            for runner in wave:
                if runner.status == "stopped":
                    say(f"{runner.name}: stopped")
                states[runner.name] = runner.state()
                remaining.pop(runner.name)
                self._forget(runner)
        self._persist()
        return [states[name] for name in wanted]

    async def restore(self, *, wait: bool, say: Say) -> list[ServiceState]:
        """Start again what a former supervisor was told to run and did not stop."""
        specs = [record.spec for record in self._former.values() if record.wanted]
        return await self.start(specs, wait=wait, replace=False, say=say)

    async def shut_down(self, say: Say) -> None:
        """Stop everything and end the supervisor's loop."""
        self.shutting_down = True
        try:
            await self.stop([*self.runners], say)
            self._former.clear()
            self._persist()
        finally:
            # Only now: the loop's end cuts the connection of whoever waits for this.
            self.shut.set()

    def states(self) -> list[ServiceState]:
        """All services: running, failed, and those that a former supervisor lost."""
        former = [r.state for name, r in self._former.items() if name not in self.runners]
        return [*(runner.state() for runner in self.runners.values()), *former]

    @property
    def busy(self) -> bool:
        """Whether any service runs or is about to."""
        return any(runner.active for runner in self.runners.values())

    # -- what runners ask (service_runner.Host) -------------------------------------------

    def changed(self, runner: ServiceRunner) -> None:
        """Remember a runner's new state; what does not run any more keeps no port and no GPU."""
        if self.runners.get(runner.name) is not runner:
            return
        if not runner.active:
            self._release(runner.name)
        self._persist()

    def repick_ports(self, runner: ServiceRunner) -> bool:
        """Replace ports that somebody took between our choice and the service's bind."""
        fresh = self._ports.replace_taken(runner.name, runner.spec.ports, runner.ports)
        if fresh is None:
            return False
        runner.ports = fresh
        return True

    async def needs_met(self, runner: ServiceRunner) -> str | None:
        """Wait until the services that it needs are ready; None, or which one failed."""
        for name in runner.spec.after:
            needed = self.runners.get(name)
            if needed is None:
                return f"it needs {name!r}, which was stopped."
            state = await needed.settled()
            if state.status not in ("ready", "unhealthy"):
                return f"it needs {name!r}, which is {state.status}."
        return None

    async def announce(self, runner: ServiceRunner) -> None:
        """Register an engine with the gateway; all engines when the gateway itself is ready."""
        engine = self._registration(runner)
        if engine is not None and self._registrar.gateway is not None:
            async with self._telling_gateway:
                runner.registered = await self._registrar.try_register(runner.name, engine)
        if GATEWAY in (runner.filled.endpoints or {}):
            await self._ensure_registered()

    async def retract(self, runner: ServiceRunner) -> None:
        """Remove an engine from the gateway, unless that is about to stop as well."""
        if runner.spec.engine is None or self.shutting_down:
            return
        runner.registered = False
        # Also where its registration was not answered: it may have arrived.
        if self._registrar.gateway is not None:
            async with self._telling_gateway:
                try:
                    await self._registrar.deregister(runner.name)
                except ServiceError as error:
                    log.warning("%s", error)

    # -- parts ----------------------------------------------------------------------------

    async def tick(self) -> None:
        """Keep the gateway's list right (somebody else may restart it), and reap."""
        await self._ensure_registered()
        reap_adopted(runner.child.pid for runner in self.runners.values() if runner.child)

    async def _ensure_registered(self) -> None:
        # Under the lock, so that an engine that is being removed is not put back.
        async with self._telling_gateway:
            runners = {
                runner.name: runner
                for runner in self.runners.values()
                if runner.spec.engine is not None and runner.status in ("ready", "unhealthy")
            }
            registrations = ((name, self._registration(r)) for name, r in runners.items())
            engines = {name: engine for name, engine in registrations if engine is not None}
            for name, known in (await self._registrar.ensure(engines)).items():
                runners[name].registered = known and runners[name].active

    def _registration(self, runner: ServiceRunner) -> EngineRegistration | None:
        """What the gateway is told of an engine, with the GPU that it was given."""
        engine = runner.filled.engine
        gpus = list(self._gpus.promised().get(runner.name, {}))
        return None if engine is None else engine.on(socket.gethostname(), gpus)

    async def _make_way(self, spec: ServiceSpec, replace: bool) -> None:
        """Leave an equal running service alone; clear away a failed or replaced one."""
        runner = self.runners.get(spec.name)
        if runner is not None and runner.status == "stopping" and runner.task is not None:
            await asyncio.shield(runner.task)
        runner = self.runners.get(spec.name)
        if runner is None:
            return
        if runner.active and runner.spec == spec:
            return
        if runner.active and not replace:
            raise ServiceError(
                f"service {spec.name!r} runs already, with other settings.",
                hint=f"Stop it first (`sage down {spec.name}`), or give the new one another name.",
            )
        await runner.stop()
        self._forget(runner)

    def _check_needs(self, specs: Sequence[ServiceSpec]) -> None:
        coming = {spec.name: spec for spec in specs}
        for spec in specs:
            for need in spec.after:
                runner = self.runners.get(need)
                if need not in coming and (runner is None or not runner.active):
                    raise ServiceError(
                        f"service {spec.name!r} needs {need!r}, which does not run.",
                        hint=f"Start {need!r} first, or together with it.",
                    )
        done: set[str] = set()
        while rest := [spec for spec in specs if spec.name not in done]:
            free = [s for s in rest if all(n in done or n not in coming for n in s.after)]
            if not free:
                circle = ", ".join(spec.name for spec in rest)
                raise ServiceError(f"services wait for each other in a circle: {circle}.")
            done.update(spec.name for spec in free)

    def _prepare(self, spec: ServiceSpec) -> ServiceRunner:
        """Promise ports and GPU memory. Nothing runs yet, and nothing is awaited in here."""
        ports = self._ports.promise(spec.name, spec.ports)
        env = service_environment()
        if spec.gpu:
            try:
                devices = self._gpus.claim(spec.name, spec.gpu)
            except ServiceError:
                self._release(spec.name)
                raise
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        runner = ServiceRunner(spec, self, ports, env)
        self.runners[spec.name] = runner
        self._former.pop(spec.name, None)
        return runner

    def _forget(self, runner: ServiceRunner) -> None:
        # While it was stopped, another client may have started its successor.
        if self.runners.get(runner.name) is runner:
            del self.runners[runner.name]
            self._release(runner.name)

    def _release(self, name: str) -> None:
        self._ports.release(name)
        self._gpus.release(name)

    def _records(self) -> Mapping[str, Record]:
        records = {name: r for name, r in self._former.items() if name not in self.runners}
        for name, runner in self.runners.items():
            child = runner.child
            process = (child.process.pid, child.process.start_ticks) if child else None
            wanted = runner.status not in ("failed", "stopped", "stopping")
            records[name] = Record(
                spec=runner.spec, state=runner.state(), process=process, wanted=wanted
            )
        return records

    def _persist(self) -> None:
        try:
            registry.write_registry(self._records(), self._identity)
        except ServiceError as error:
            # Running services must not end because a disk is full; the next change tries again.
            log.error("%s", error)
