"""Talk to the supervisor, and start it when it does not run. Synchronous, for CLIs and scripts."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from sage_prefect.common import errors
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import log_dir, state_dir
from sage_prefect.platform import registry, service_logs
from sage_prefect.platform.processes import identify, service_environment
from sage_prefect.platform.service import ServiceSpec, ServiceState

_START_LIMIT_S = 60.0
_PROTOCOL = 1

Progress = Callable[[str], None]
# Aliases, because the client has a method of the name `list`.
States = list[ServiceState]
Lines = list[str]

# Supervisors that this process started: they outlive it, but must be reaped while it lives.
_launched: list[subprocess.Popen[bytes]] = []


class SupervisorNotRunning(ServiceError):  # noqa: N818 - a state, told apart by callers
    """No supervisor runs for this state directory."""

    def __init__(self) -> None:
        super().__init__(
            f"no supervisor runs for {state_dir()}.", hint="Start services with `sage up`."
        )


class SupervisorClient:
    """A client of the running supervisor. Each call opens a connection of its own.

    Build it with :meth:`connect`.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def connect(cls, start: bool = True) -> SupervisorClient:
        """Reach the supervisor of this state directory.

        Args:
            start: start one in the background when none runs.

        Raises:
            SupervisorNotRunning: none runs and ``start`` is False.
            ServiceError: it could not be started (the message holds the end of its log), it is
                of another version, or the state directory cannot be used.
        """
        try:
            return cls(_hello())
        except SupervisorNotRunning:
            if not start:
                raise
        registry.require_state_dir()
        with _start_lock():
            return cls(_launch())

    def start(
        self,
        spec: ServiceSpec,
        wait: bool = True,
        on_progress: Progress | None = None,
        *,
        replace: bool = False,
    ) -> ServiceState:
        """Start a service; one that runs already with an equal spec is returned as it is.

        Args:
            wait: until it is ready. Otherwise returns at once, usually in status ``starting``.
            on_progress: called with a sentence whenever there is news.
            replace: stop one of this name that runs with another spec, instead of refusing.

        Raises:
            PortInUseError: an explicitly chosen port is taken.
            ServiceError: it cannot be started, or failed (with the last lines of its log).
        """
        return self.start_many([spec], wait, on_progress, replace=replace)[0]

    def start_many(
        self,
        specs: Sequence[ServiceSpec],
        wait: bool = True,
        on_progress: Progress | None = None,
        *,
        replace: bool = False,
    ) -> States:
        """Start services at the same time (``after`` is kept); arguments as in :meth:`start`.

        Raises:
            ServiceError: at least one failed; the message holds all that did. The others run.
        """
        request = {
            "op": "start",
            "specs": [spec.model_dump(mode="json") for spec in specs],
            "wait": wait,
            "replace": replace,
        }
        states = _states(_call(request, on_progress))
        if wait:
            _raise_failed(states)
        return states

    def restore(self, wait: bool = True, on_progress: Progress | None = None) -> States:
        """Start again what ran when a former supervisor was killed.

        Raises:
            ServiceError: at least one failed.
        """
        states = _states(_call({"op": "restore", "wait": wait}, on_progress))
        if wait:
            _raise_failed(states)
        return states

    def stop(self, *names: str, on_progress: Progress | None = None) -> States:
        """Stop services; returns their last states when no process of them is left.

        Raises:
            ServiceError: a name is unknown.
        """
        return _states(_call({"op": "stop", "names": list(names)}, on_progress))

    def list(self) -> States:
        """All services that the supervisor knows."""
        return _states(_call({"op": "list"}))

    def get(self, name: str) -> ServiceState | None:
        """One service, or None."""
        return next((state for state in self.list() if state.name == name), None)

    def logs(self, name: str, lines: int = 50) -> Lines:
        """The last lines of a service's log file; empty when it has none."""
        return service_logs.tail(name, lines)

    def shutdown(self, on_progress: Progress | None = None, timeout_s: float = 60.0) -> None:
        """Stop all services and the supervisor; returns when it is gone.

        Raises:
            ServiceError: it did not end within ``timeout_s`` seconds after its answer.
        """
        process = identify(self.pid)
        try:
            _call({"op": "shutdown"}, on_progress)
        except SupervisorNotRunning:
            return
        deadline = time.monotonic() + timeout_s
        while process is not None and identify(self.pid) == process:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"the supervisor (process {self.pid}) did not end within {timeout_s:g} s.",
                    hint=f"See {log_dir() / 'supervisor.log'}; then kill process {self.pid}.",
                )
            time.sleep(0.02)
        for launched in _launched:
            launched.poll()


def recorded_states() -> list[ServiceState]:
    """What the registry file says, for when no supervisor runs (nothing of it is alive then)."""
    gone: dict[str, Any] = {"pid": None, "endpoints": {}}
    return [
        record.state.model_copy(
            update=gone if record.state.status == "failed" else {**gone, "status": "stopped"}
        )
        for record in registry.read_registry().services.values()
    ]


# -- starting it ------------------------------------------------------------------------------


@contextmanager
def _start_lock() -> Iterator[None]:
    """Of two clients that find no supervisor, one starts it and the other waits."""
    with (state_dir() / "supervisor-start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _launch() -> int:
    try:
        return _hello()  # another client was faster
    except SupervisorNotRunning:
        pass
    offset = _log_size()
    with service_logs.open_log("supervisor") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sage_prefect.platform.supervisor"],
            env=service_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        ended = process.poll()
        try:
            pid = _hello()
        except SupervisorNotRunning:
            # Status 0 means that another supervisor holds the lock: it is starting or leaving.
            if ended:
                break
            if ended == 0:
                return _launch_after_other(deadline)
            time.sleep(0.02)
        else:
            _launched.append(process)
            return pid
    process.poll()
    text = "\n".join(f"  {line}" for line in service_logs.tail("supervisor", 12, since=offset))
    raise ServiceError(
        f"the supervisor did not start:\n{text}",
        hint=f"Its log is {service_logs.log_file('supervisor')}.",
    )


def _launch_after_other(deadline: float) -> int:
    while time.monotonic() < deadline:
        try:
            return _hello()
        except SupervisorNotRunning:
            time.sleep(0.05)
        if _lock_is_free():
            return _launch()
    raise ServiceError(
        f"another supervisor holds {state_dir() / 'supervisor.lock'} but does not answer.",
        hint=f"See {service_logs.log_file('supervisor')}, and end that process.",
    )


def _lock_is_free() -> bool:
    with (state_dir() / "supervisor.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _log_size() -> int:
    try:
        return os.stat(service_logs.log_file("supervisor")).st_size
    except FileNotFoundError:
        return 0


# -- talking to it ----------------------------------------------------------------------------


def _hello() -> int:
    answer = _call({"op": "hello"})
    if answer["protocol"] != _PROTOCOL:
        raise ServiceError(
            f"the running supervisor (process {answer['pid']}) is of version {answer['version']} "
            f"and speaks protocol {answer['protocol']}; this is protocol {_PROTOCOL}.",
            hint=f"Stop it with its own version, or: kill {answer['pid']}",
        )
    return int(answer["pid"])


def _call(request: dict[str, Any], on_progress: Progress | None = None) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(registry.socket_path()))
            connection.sendall(orjson.dumps(request) + b"\n")
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            raise SupervisorNotRunning from error
        with connection.makefile("rb") as stream:
            for line in _lines(stream):
                message = orjson.loads(line)
                if "progress" in message:
                    if on_progress is not None:
                        on_progress(str(message["progress"]))
                elif "error" in message:
                    raise _error(message["error"])
                else:
                    return message["result"]
    if request["op"] == "hello":  # it closed the socket on its way out
        raise SupervisorNotRunning
    raise ServiceError(
        f"the supervisor ended during {request['op']!r}.",
        hint=f"See {service_logs.log_file('supervisor')}. Running the command again is safe.",
    )


def _lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from stream
    except ConnectionError:
        return  # told apart from an answer by the missing last line


def _error(message: dict[str, Any]) -> ServiceError:
    kind = getattr(errors, str(message.get("type")), ServiceError)
    if not (isinstance(kind, type) and issubclass(kind, ServiceError)):
        kind = ServiceError
    return kind(str(message["message"]), hint=message.get("hint"))


def _states(answer: Sequence[dict[str, Any]]) -> list[ServiceState]:
    return [ServiceState.model_validate(item) for item in answer]


def _raise_failed(states: Iterable[ServiceState]) -> None:
    failed = [state for state in states if state.status in ("failed", "stopped")]
    if failed:
        raise ServiceError(
            "\n".join(
                f"service {state.name!r} did not start: {state.detail or state.status}"
                for state in failed
            ),
            hint="Full logs: " + ", ".join(s.log_file for s in failed if s.log_file)
            if any(state.log_file for state in failed)
            else None,
        )
