"""Linux process facts and signals: who a process is, what belongs to a service, how it ends.

A process id alone proves nothing (ids are reused), so a process is known by id and start time,
and one of ours also by two environment variables that every child inherits:
``SAGE_SUPERVISOR=<state directory>`` and ``SAGE_SERVICE=<name>``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sage_prefect.common.paths import state_dir

MARKER = "SAGE_SUPERVISOR"
SERVICE_MARKER = "SAGE_SERVICE"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here, not in the child between fork and exec, where the loader's lock may be held.
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ProcessId:
    """A process for certain: its id, and its start in clock ticks since boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int


def boot_id() -> str:
    """Identifies this boot: recorded process ids mean nothing after the next one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, or None when there is none (or only a zombie)."""
    stat = _stat(pid)
    return ProcessId(pid, stat.start_ticks) if stat is not None and stat.state != "Z" else None


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs."""
    return identify(process.pid) == process


def members(
    marker: str, service: str | None = None, sessions: Iterable[ProcessId] = ()
) -> list[ProcessId]:
    """Processes of a supervisor's services (or of one service), this process excluded.

    A process belongs when its environment holds our marker, or when it lives in the session of a
    recorded leader: some servers (vLLM, for one) overwrite their environment to set a title.

    Args:
        marker: the value of ``SAGE_SUPERVISOR``.
        service: the value of ``SAGE_SERVICE``; None for all services.
        sessions: leaders of the sessions that were started for the service.
    """
    leaders = {leader.pid: leader for leader in sessions}
    found = []
    stats = {stat.pid: stat for stat in _all_stats()}
    for stat in stats.values():
        if stat.pid == os.getpid() or stat.state == "Z":
            continue
        leader = leaders.get(stat.session)
        # A leader of another start time is a foreign session that got the id anew.
        in_session = leader is not None and (
            leader.pid in stats and stats[leader.pid].start_ticks == leader.start_ticks
        )
        if in_session or _has_marker(stat.pid, marker, service):
            found.append(ProcessId(stat.pid, stat.start_ticks))
    return found


def send(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    """Send a signal to each process that still is the one meant."""
    for process in processes:
        if is_alive(process):
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue  # it ended in between: what was wanted


def group_members(leader: ProcessId) -> list[ProcessId]:
    """Processes of a leader's process group, zombies excluded."""
    return [
        ProcessId(stat.pid, stat.start_ticks)
        for stat in _all_stats()
        if stat.group == leader.pid and stat.state != "Z"
    ]


def reap_adopted(own: Iterable[int]) -> None:
    """Reap zombies that became ours because their parents ended.

    Args:
        own: children that somebody else waits for.
    """
    keep = set(own)
    for stat in _all_stats():
        if stat.parent == os.getpid() and stat.state == "Z" and stat.pid not in keep:
            try:
                os.waitpid(stat.pid, os.WNOHANG)
            except ChildProcessError:
                continue  # reaped meanwhile


def end_strays(
    marker: str | None = None, leaders: Iterable[ProcessId] = (), *, timeout_s: float = 5.0
) -> int:
    """End what a killed supervisor left behind: SIGTERM, then SIGKILL. Only while none runs.

    Args:
        marker: the value of ``SAGE_SUPERVISOR``; default: this user's state directory.
        leaders: session leaders that its registry recorded.
        timeout_s: from SIGTERM to SIGKILL.

    Returns:
        How many processes were ended.
    """
    marker = str(state_dir()) if marker is None else marker
    leaders = list(leaders)
    ended: set[ProcessId] = set()
    number, deadline = signal.SIGTERM, time.monotonic() + timeout_s
    while strays := members(marker, sessions=leaders):
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        if number is signal.SIGKILL or not ended.issuperset(strays):
            send(strays, number)
        ended.update(strays)
        time.sleep(0.05)
    return len(ended)


def service_environment() -> dict[str, str]:
    """The environment that services inherit: ours, without what is ours alone."""
    return {key: value for key, value in os.environ.items() if not _private(key)}


def _private(variable: str) -> bool:
    return variable in (MARKER, SERVICE_MARKER) or variable.startswith("SAGE_PORT_")


def become_subreaper() -> None:
    """Make orphaned grandchildren ours, so that they can be reaped also where init does not."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def spawn(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str | None, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that gets SIGTERM when this thread's process dies.

    The signal hangs on the calling *thread*: call it from the main thread.
    """
    return subprocess.Popen(
        list(command),
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Safe beside threads: the child only calls prctl and getppid, both already loaded.
        preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509
    )


def _die_with_parent(parent: int) -> Callable[[], None]:
    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl took effect
            os._exit(1)

    return in_child


def _all_stats() -> Iterator[_Stat]:
    for name in os.listdir("/proc"):
        stat = _stat(int(name)) if name.isdigit() else None
        if stat is not None:
            yield stat


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command name stands in parentheses and may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _has_marker(pid: int, marker: str, service: str | None) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    if f"{MARKER}={marker}".encode() not in environment:
        return False
    return service is None or f"{SERVICE_MARKER}={service}".encode() in environment
