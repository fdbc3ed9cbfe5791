"""The life of one service: wait, start, probe, watch, restart, stop. One asyncio task each."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.platform import probes, service_logs
from sage_prefect.platform.child import Child, end_service
from sage_prefect.platform.listeners import foreign_listener
from sage_prefect.platform.processes import MARKER, SERVICE_MARKER, members, spawn
from sage_prefect.platform.service import ACTIVE, Probe, ServiceSpec, ServiceState, ServiceStatus

log = logging.getLogger(__name__)

_PORT_RACES = 3
_STILL_WAITING_S = 3.0
_LOG_TAIL = 12


class Host(Protocol):
    """What a runner needs from the supervisor around it."""

    marker: str

    def changed(self, runner: ServiceRunner) -> None:
        """The runner's state changed: remember it."""

    def repick_ports(self, runner: ServiceRunner) -> bool:
        """Choose other ports where somebody else took one; False when none was taken."""

    async def needs_met(self, runner: ServiceRunner) -> str | None:
        """Wait for the services in ``after``; None when all are ready, else why not."""

    async def announce(self, runner: ServiceRunner) -> None:
        """The service became ready."""

    async def retract(self, runner: ServiceRunner) -> None:
        """The service is about to end for good."""


class ServiceRunner:
    """Runs one service until it is stopped or given up."""

    def __init__(
        self, spec: ServiceSpec, host: Host, ports: Mapping[str, int], env: Mapping[str, str]
    ) -> None:
        self.spec = spec
        self.ports = dict(ports)
        self.child: Child | None = None
        self.registered: bool | None = None if spec.engine is None else False
        self.status: ServiceStatus = "starting"
        self.detail = ""
        self.filled = spec
        self._host = host
        self._env = dict(env)
        self._since: float | None = None
        self._ready_s: float | None = None
        self._restarts: deque[float] = deque()
        self._restart_count = 0
        self._log_offset = 0
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self.listeners: set[Callable[[str], None]] = set()
        self.task: asyncio.Task[None] | None = None

    # -- what others may ask --------------------------------------------------------------

    @property
    def name(self) -> str:
        """The service's name."""
        return self.spec.name

    @property
    def active(self) -> bool:
        """Whether it runs or is about to."""
        return self.status in ACTIVE

    def state(self) -> ServiceState:
        """A snapshot for clients and the registry."""
        up = self.status in ("ready", "unhealthy")
        engine = self.spec.engine
        return ServiceState(
            name=self.name,
            kind=self.spec.kind,
            status=self.status,
            pid=self.child.pid if self.child else None,
            ports=self.ports,
            endpoints=dict(self.filled.endpoints or {}) if up else {},
            since=self._since,
            ready_s=self._ready_s,
            restarts=self._restart_count,
            registered=self.registered,
            detail=self.detail,
            log_file=str(service_logs.log_file(self.name)) if self.spec.command else "",
            models=tuple(model.name for model in engine.models) if engine else (),
            driver=engine.driver if engine else None,
        )

    async def settled(self) -> ServiceState:
        """Wait until the start came to an end, good or bad."""
        await self._settled.wait()
        return self.state()

    def launch(self) -> None:
        """Begin. The event loop must run."""
        self.task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Drain and end the service; returns when no process of it is left."""
        self._stop.set()
        if self.task is not None:
            await asyncio.shield(self.task)

    # -- the life -------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._live()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a bug must not leave a process without a watcher
            log.exception("runner of %s failed", self.name)
            await self._end_process()
            self._set("failed", f"the supervisor failed to run it: {error!r}")

    async def _live(self) -> None:
        if self.spec.after:
            self._set("waiting", f"for {', '.join(self.spec.after)}")
            problem = await self._unless_stopped(self._host.needs_met(self))
            if problem is not None and not self._stop.is_set():
                self._set("failed", problem)
                return
        races = 0
        while not self._stop.is_set():
            problem = await self._start()
            if self._stop.is_set():
                break
            if problem is not None:
                await self._end_process()
                races += 1
                if races <= _PORT_RACES and self._host.repick_ports(self):
                    self._say(f"a port was taken meanwhile; trying {dict(self.ports)}")
                    continue
                self._set("failed", problem)
                await self._host.retract(self)
                return
            reason = await self._watch()
            if self._stop.is_set():
                break
            await self._end_process()
            self._withdraw()
            if not await self._may_restart(reason):
                return
        await self._shut_down()

    async def _start(self) -> str | None:
        """Spawn and wait for readiness; None when ready (or stopped), else why not."""
        self._set("starting")
        begun = time.monotonic()
        self._since, self._ready_s = time.time(), None
        try:
            self.filled = self.spec.filled(self.ports, endpoints.read_all())
            if self.spec.command:
                self._spawn()
        except ServiceError as error:
            return str(error)
        except OSError as error:
            return f"cannot run {self.filled.command[0]!r}: {error.strerror or error}"
        self._host.changed(self)
        problem = await self._become_ready(begun)
        if problem is not None or self._stop.is_set():
            return problem
        self._ready_s = round(time.monotonic() - begun, 3)
        try:
            for name, url in (self.filled.endpoints or {}).items():
                endpoints.publish(name, url)
        except OSError as error:
            return f"its address cannot be written to {endpoints.endpoints_file()}: {error}."
        await self._host.announce(self)
        self._set("ready")
        self._say(f"ready after {self._ready_s:.1f} s" + self._where())
        return None

    def _spawn(self) -> None:
        env = {**self._env, **self.filled.env}
        env[MARKER], env[SERVICE_MARKER] = self._host.marker, self.name
        env.setdefault("PYTHONUNBUFFERED", "1")
        with service_logs.open_log(self.name) as output:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            output.write(f"--- {stamp} {shlex.join(self.filled.command)}\n".encode())
            self._log_offset = os.fstat(output.fileno()).st_size
            self.child = Child(spawn(self.filled.command, env=env, cwd=self.filled.cwd, log=output))
        self._say(f"started, process {self.child.pid}" + self._where())

    async def _become_ready(self, begun: float) -> str | None:
        probe = self.filled.ready
        answer: str | None = "not asked yet"
        said = begun
        limit = self.spec.start_timeout_s
        while not self._stop.is_set():
            if self.child is not None and self.child.exited.is_set():
                status = await self._end_process()
                return f"it ended while starting ({_explain_exit(status)})." + self._tail()
            answer = None if probe is None else await self._ask(probe)
            if self.child is not None and self.child.exited.is_set():
                continue
            # Whoever answers must be ours: another stack may have taken the port since.
            taken = self._taken_port()
            if taken is not None:
                # Unless ours is just ending: its files close before its end is noticed.
                await self._pause(self.spec.probe_period_s)
                if self.child is not None and self.child.exited.is_set():
                    continue
                taken = self._taken_port()
            if taken is not None:
                return f"port {taken} was taken by another process while it started."
            if answer is None:
                return None
            now = time.monotonic()
            if now - begun > limit:
                return f"it was not ready within {limit:g} s: {answer}." + self._tail()
            if now - said >= _STILL_WAITING_S:
                said = now
                news = service_logs.tail(self.name, 1, since=self._log_offset) or [answer]
                self._say(f"starting since {now - begun:.0f} s: {news[-1].strip()[:160]}")
            await self._pause(self.spec.probe_period_s)
        return None

    async def _watch(self) -> str:
        """Watch a ready service; returns why it must be started again (or after a stop)."""
        probe = self.filled.live or self.filled.ready
        failures = 0
        while True:
            await self._pause(self.spec.live_period_s)
            if self._stop.is_set():
                return "stopped"
            if self.child is not None and self.child.exited.is_set():
                status = await self._end_process()
                return f"it ended by itself ({_explain_exit(status)})." + self._tail()
            self._trim_log()
            answer = None if probe is None else await self._ask(probe)
            if answer is None:
                if self.status == "unhealthy":
                    self._set("ready")
                    self._say("healthy again")
                failures = 0
                continue
            failures += 1
            if failures >= min(2, self.spec.live_failures):
                self._set("unhealthy", f"{failures} probes failed: {answer}")
            if failures >= self.spec.live_failures and self.child is not None:
                return f"{failures} liveness probes failed, last: {answer}." + self._tail()

    async def _may_restart(self, reason: str) -> bool:
        policy, now = self.spec.restart, time.monotonic()
        while self._restarts and now - self._restarts[0] > policy.window_s:
            self._restarts.popleft()
        log.warning("%s: %s", self.name, reason)
        if len(self._restarts) >= policy.limit:
            self._set(
                "failed",
                f"given up after {len(self._restarts)} restarts within {policy.window_s:g} s: "
                + reason,
            )
            await self._host.retract(self)
            return False
        self._restarts.append(now)
        self._restart_count += 1
        delay = policy.delay_s(len(self._restarts))
        self._set("backoff", f"restart {self._restart_count} in {delay:g} s: {reason}")
        await self._pause(delay, watch_child=False)
        return True

    async def _shut_down(self) -> None:
        self._set("stopping")
        self._withdraw()
        await self._host.retract(self)
        alive = self.child is not None and not self.child.exited.is_set()
        if alive and self.filled.drain is not None and self._ready_s is not None:
            self._set("stopping", "draining")
            await self._drain(self.filled.drain)
        await self._end_process()
        self._set("stopped")

    async def _drain(self, probe: Probe) -> None:
        deadline = time.monotonic() + self.spec.drain_timeout_s
        while time.monotonic() < deadline:
            answer = await self._ask(probe)
            if answer is None or self.child is None or self.child.exited.is_set():
                return
            await asyncio.sleep(0.1)
        log.warning("%s: not drained within %g s", self.name, self.spec.drain_timeout_s)

    # -- parts ----------------------------------------------------------------------------

    async def _end_process(self) -> int:
        if self.child is None:
            return 0
        child = self.child
        status = await end_service(child, self._host.marker, self.name, self.spec.stop_timeout_s)
        self.child = None
        return status

    async def _ask(self, probe: Probe) -> str | None:
        return await probes.ask(probe, started=self._since or 0.0)

    async def _pause(self, seconds: float, *, watch_child: bool = True) -> None:
        """Sleep, but no longer than until a stop or (when watched) the child's end."""
        waits = [asyncio.ensure_future(self._stop.wait())]
        if watch_child and self.child is not None:
            waits.append(asyncio.ensure_future(self.child.exited.wait()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _unless_stopped(self, waiting: Coroutine[None, None, str | None]) -> str | None:
        work = asyncio.ensure_future(waiting)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            work.cancel()
            stop.cancel()

    def _taken_port(self) -> int | None:
        child = self.child
        if child is None:
            return None

        def own() -> list[int]:
            return [m.pid for m in members(self._host.marker, self.name, [child.process])]

        for claim in self.spec.ports:
            port = self.ports[claim.name]
            if foreign_listener(port, claim.host, own):
                return port
        return None

    def _withdraw(self) -> None:
        for name in self.filled.endpoints or {}:
            try:
                endpoints.withdraw(name)
            except OSError as error:
                # A full disk must not keep a service from being drained and stopped.
                log.error("%s: its address stays in the list: %s", self.name, error)

    def _trim_log(self) -> None:
        if self.spec.command and service_logs.trim_log(self.name):
            self._log_offset = 0

    def _tail(self) -> str:
        if not self.spec.command:
            return ""
        lines = service_logs.tail(self.name, _LOG_TAIL, since=self._log_offset)
        file = service_logs.log_file(self.name)
        if not lines:
            return f" It wrote nothing to {file}."
        return f" Last lines of {file}:\n" + "\n".join(f"  {line}" for line in lines)

    def _where(self) -> str:
        return f", port {', '.join(map(str, self.ports.values()))}" if self.ports else ""

    def _say(self, text: str) -> None:
        log.info("%s: %s", self.name, text)
        for listener in list(self.listeners):
            listener(f"{self.name}: {text}")

    def _set(self, status: ServiceStatus, detail: str = "") -> None:
        self.status, self.detail = status, detail
        if status in ("ready", "unhealthy", "failed", "stopped"):
            self._settled.set()
        else:
            self._settled.clear()
        self._host.changed(self)


@contextmanager
def listening(runners: Iterable[ServiceRunner], say: Callable[[str], None]) -> Iterator[None]:
    """Let ``say`` hear of the runners' progress inside the ``with`` block."""
    heard = list(runners)
    for runner in heard:
        runner.listeners.add(say)
    try:
        yield
    finally:
        for runner in heard:
            runner.listeners.discard(say)


def _explain_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    why = ", out of memory?" if name == "SIGKILL" else ""
    return f"killed by {name}{why}"
