"""One child process in an event loop: notice its end without reaping it, and end it thoroughly.

The child stays a zombie until :meth:`Child.reap`. While it does, neither its process id nor its
session id can be given to a foreign process, so that signals to them are safe.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence

from sage_prefect.platform.processes import (
    ProcessId,
    group_members,
    identify,
    is_alive,
    members,
    send,
)

_POLL_S = 0.05


class Child:
    """A child of this process, watched by the running event loop."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        identity = identify(popen.pid)
        # A child that has ended already is a zombie: it has no identity, and needs none.
        self.process = identity or ProcessId(popen.pid, -1)
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except OSError:  # kernels before 5.3 and some sandboxes
            self._poll()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its session and process group."""
        return self.popen.pid

    def reap(self) -> int:
        """Wait for the child and forget its id; the exit status (negative: a signal)."""
        status = self.popen.wait()
        self._close()
        return status

    def _poll(self) -> None:
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        if os.waitid(os.P_PID, self.popen.pid, flags) is not None:
            self.exited.set()
        else:
            self._loop.call_later(_POLL_S, self._poll)

    def _on_exit(self) -> None:
        self._close()
        self.exited.set()

    def _close(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


async def end_service(child: Child, marker: str, service: str, stop_timeout_s: float) -> int:
    """End a service's whole process tree; the leader's exit status.

    SIGTERM to the leader's process group; after the leader's end also to members elsewhere (its
    own children get the chance to be ended by it first); SIGKILL to all after the time limit.
    """
    group = group_members(child.process)
    if not child.exited.is_set():
        os.killpg(child.pid, signal.SIGTERM)
    else:
        send(group, signal.SIGTERM)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + stop_timeout_s
    while not child.exited.is_set() and loop.time() < deadline:
        await _first_of(child.exited, deadline - loop.time())
    told = set(group)

    def rest() -> list[ProcessId]:
        return members(marker, service, [child.process])

    remaining = rest()
    while remaining and loop.time() < deadline:
        send([process for process in remaining if process not in told], signal.SIGTERM)
        told.update(remaining)
        await _gone(remaining, deadline)
        remaining = rest()
    while remaining:
        send(remaining, signal.SIGKILL)
        await _gone(remaining, loop.time() + 2.0)
        remaining = rest()
    await child.exited.wait()
    return child.reap()


async def _gone(processes: Sequence[ProcessId], deadline: float) -> None:
    loop = asyncio.get_running_loop()
    # Polled: most of these processes are not our children, so nobody tells us of their end.
    while any(is_alive(process) for process in processes) and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


async def _first_of(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), max(0.0, timeout_s))
    except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
        return
