"""The supervisor: one process per state directory that owns all services of this user.

``python -m sage_prefect.platform.supervisor`` runs it in the foreground; clients start it in the
background when they need it (:mod:`sage_prefect.platform.supervisor_client`). It is one thread
with an event loop, because the kernel's parent-death signal hangs on the thread that spawned.

* Only one runs: it holds a lock on ``supervisor.lock`` for its life.
* It first ends what a former supervisor left behind, known by marker, session and start time.
* It ends by itself when nothing has run and nobody was connected for ``--idle-exit`` seconds.
* SIGTERM and SIGINT stop all services, then the supervisor.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.logs import configure_logging
from sage_prefect.common.paths import state_dir
from sage_prefect.platform import registry
from sage_prefect.platform.control_server import ControlServer
from sage_prefect.platform.gateway_registrar import GatewayRegistrar
from sage_prefect.platform.gpus import GpuLedger, list_gpus
from sage_prefect.platform.port_promises import PortPromises
from sage_prefect.platform.processes import (
    MARKER,
    SERVICE_MARKER,
    ProcessId,
    become_subreaper,
    end_strays,
    identify,
    reap_adopted,
)
from sage_prefect.platform.registry import Record
from sage_prefect.platform.service import ServiceSpec, ServiceState
from sage_prefect.platform.service_runner import ServiceRunner, listening

log = logging.getLogger(__name__)

GATEWAY = "gateway"
_TICK_S = 5.0

Say = Callable[[str], None]


class Supervisor:
    """Owns the services; its methods are the operations that clients may ask for."""

    def __init__(self, gpus: GpuLedger) -> None:
        self.marker = str(state_dir())
        self.runners: dict[str, ServiceRunner] = {}
        self.shutting_down = False
        self.shut = asyncio.Event()
        self._gpus = gpus
        self._ports = PortPromises()
        self._registrar = GatewayRegistrar()
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
                if self.runners.get(runner.name) is runner:
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
        engine = runner.filled.engine
        if engine is not None and self._registrar.gateway is not None:
            runner.registered = await self._registrar.try_register(runner.name, engine)
        if GATEWAY in (runner.filled.endpoints or {}):
            await self._ensure_registered()

    async def retract(self, runner: ServiceRunner) -> None:
        """Remove an engine from the gateway, unless that is about to stop as well."""
        if runner.spec.engine is None or self.shutting_down:
            return
        if runner.registered and self._registrar.gateway is not None:
            try:
                await self._registrar.deregister(runner.name)
            except ServiceError as error:
                log.warning("%s", error)
        runner.registered = False

    # -- parts ----------------------------------------------------------------------------

    async def tick(self) -> None:
        """Keep the gateway's list right (somebody else may restart it), and reap."""
        await self._ensure_registered()
        reap_adopted(runner.child.pid for runner in self.runners.values() if runner.child)

    async def _ensure_registered(self) -> None:
        engines = {
            runner.name: runner.filled.engine
            for runner in self.runners.values()
            if runner.filled.engine is not None and runner.status in ("ready", "unhealthy")
        }
        for name, known in (await self._registrar.ensure(engines)).items():
            if name in self.runners:
                self.runners[name].registered = known

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
                hint=f"Stop it first (`sage stop {spec.name}`), or give the new one another name.",
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
        return runner

    def _forget(self, runner: ServiceRunner) -> None:
        self.runners.pop(runner.name, None)
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


def service_environment() -> dict[str, str]:
    """The environment that services inherit: ours, without what is ours alone."""
    return {key: value for key, value in os.environ.items() if not _private(key)}


def _private(variable: str) -> bool:
    return variable in (MARKER, SERVICE_MARKER) or variable.startswith("SAGE_PORT_")


# -- the process ------------------------------------------------------------------------------


def take_lock() -> IO[str] | None:
    """The lock that makes this the only supervisor of its state directory; None when it is not."""
    file = (registry.require_state_dir() / "supervisor.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


async def serve(idle_exit_s: float) -> None:
    """Run a supervisor until it is told to stop or has been idle for ``idle_exit_s`` seconds.

    Raises:
        ServiceError: the registry is damaged, or the control socket cannot be bound.
    """
    become_subreaper()
    loop = asyncio.get_running_loop()
    stopping: set[asyncio.Task[None]] = set()
    supervisor = Supervisor(GpuLedger(list_gpus()))
    supervisor.adopt_former()

    def on_signal() -> None:
        log.info("told to stop")
        if not stopping:
            stopping.add(loop.create_task(supervisor.shut_down(log.info)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with ControlServer(supervisor) as server:
        log.info("supervisor ready, pid %d, socket %s", os.getpid(), server.path)
        idle_since = loop.time()
        while not supervisor.shut.is_set():
            await _wait(supervisor.shut, min(_TICK_S, max(idle_exit_s / 2, 0.05)))
            await supervisor.tick()
            if supervisor.busy or server.connections:
                idle_since = loop.time()
            elif loop.time() - idle_since >= idle_exit_s:
                log.info("idle for %g s: leaving", idle_exit_s)
                break
        await asyncio.gather(*stopping)
        await server.finish()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the supervisor in the foreground; 0 also when another one runs already."""
    parser = argparse.ArgumentParser(prog="sage-supervisor", description=__doc__)
    parser.add_argument("--idle-exit", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        lock = take_lock()
        if lock is None:
            log.info("another supervisor runs for %s", state_dir())
            return 0
        with lock:
            asyncio.run(serve(options.idle_exit))
    except ServiceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
