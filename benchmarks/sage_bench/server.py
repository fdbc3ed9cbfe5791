"""A server that a benchmark starts for itself: on a free port, logged, ended with the run.

Benchmarks do not use the services that ``sage up`` runs: those serve others meanwhile, and their
configuration is not the benchmark's.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx

from sage_prefect.common.errors import BenchmarkError
from sage_prefect.platform.processes import ProcessId, group_members, is_alive, send, spawn

_Self = TypeVar("_Self", bound="Server")


class Server:
    """A child process that answers HTTP. Entering waits until it is ready; leaving ends its group.

    Args:
        name: for messages and the log file's name.
        command: with ``{port}`` where the port goes.
        ready: path that answers 200 once the server can work.
        log: file for its output.
        env: changes to this process's environment.
        start_timeout_s, stop_timeout_s: how long it may take.

    Raises:
        BenchmarkError: on entering: it ended or did not become ready; quotes its log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        ready: str = "/health",
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 180.0,
        stop_timeout_s: float = 15.0,
    ) -> None:
        self.name, self.log, self._ready = name, log, ready
        self.port = free_port()
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self._env = dict(env or {})
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s

    @property
    def url(self) -> str:
        """Its base URL, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id (root of its tree)."""
        return self._process.pid

    def __enter__(self: _Self) -> _Self:
        with self.log.open("wb") as log:
            self._process = spawn(self.command, env={**os.environ, **self._env}, cwd=None, log=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                status = self._process.poll()
                if status is not None:
                    raise BenchmarkError(
                        f"{self.name} ended with status {status} while starting: {self.log_tail()}",
                        hint=f"Its log: {self.log}.",
                    )
                if self._is_ready(client):
                    return
                time.sleep(0.05)
        raise BenchmarkError(
            f"{self.name} was not ready after {self._start_timeout_s:g} s: {self.log_tail()}",
            hint=f"Its log: {self.log}.",
        )

    def _is_ready(self, client: httpx.Client) -> bool:
        try:
            return client.get(self.url + self._ready).status_code == 200
        except httpx.TransportError:
            return False  # not listening yet

    def _end(self) -> None:
        leader = ProcessId(self._process.pid, -1)
        # The leader is our child: until it is waited for, its group id names no foreign group.
        group = group_members(leader)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        else:
            send(group, signal.SIGTERM)
        deadline = time.monotonic() + self._stop_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None and not _living(group):
                break
            time.sleep(0.02)
        else:
            send(_living(group), signal.SIGKILL)
        self._process.wait()
        while _living(group):  # the kernel takes a moment even for SIGKILL
            time.sleep(0.01)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of its log."""
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])


def _living(group: Sequence[ProcessId]) -> list[ProcessId]:
    return [process for process in group if is_alive(process)]


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
