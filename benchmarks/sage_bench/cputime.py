"""CPU time of process trees: user + system of all descendants, ended ones included.

Wall time on a shared machine says as much about the neighbours as about the system; CPU time says
what the work cost. Read from ``/proc`` (Linux), in the kernel's ticks of 10 ms per process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from sage_prefect.common.errors import BenchmarkError


class ProcessTimes(NamedTuple):
    """One row of the process table; times in seconds."""

    pid: int
    started: int  # clock ticks since boot: with the pid it names a process for good
    parent: int
    own_s: float  # user + system
    reaped_s: float  # of ended children that it waited for, their descendants included


Table = Mapping[int, ProcessTimes]
_Key = tuple[int, int]


def read_table() -> dict[int, ProcessTimes]:
    """All processes of the machine now, by pid.

    Raises:
        BenchmarkError: there is no ``/proc`` (not Linux).
    """
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except FileNotFoundError:
        raise BenchmarkError("CPU times need /proc.", hint="Run benchmarks on Linux.") from None
    table = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                line = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since the listing
        table[pid] = parse_stat(line)
    return table


def parse_stat(line: bytes, ticks_per_s: int | None = None) -> ProcessTimes:
    """Parse ``/proc/PID/stat`` (proc(5)); the name in parentheses may itself hold any character."""
    ticks = ticks_per_s or os.sysconf("SC_CLK_TCK")
    fields = line[line.rindex(b")") + 2 :].split()
    user, system, child_user, child_system = (int(field) for field in fields[11:15])
    return ProcessTimes(
        pid=int(line.split(b" ", 1)[0]),
        started=int(fields[19]),
        parent=int(fields[1]),
        own_s=(user + system) / ticks,
        reaped_s=(child_user + child_system) / ticks,
    )


@dataclass
class _Last:
    times: ProcessTimes
    parent_is_ours: bool


class TreeTally:
    """Sums the times of process trees over successive process tables. Pure: no I/O, no clock.

    A process's time is its own plus that of the children it has waited for, so a tree's sum never
    falls when a child ends: the child's time moves up. A process that lost its parent is followed
    by identity; as nobody of ours will wait for it, what it had spent when last seen is kept.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = frozenset(roots)
        self._root_keys: set[_Key] = set()
        self._known: dict[_Key, _Last] = {}
        self._kept_s = 0.0

    @property
    def members(self) -> frozenset[_Key]:
        """(pid, start tick) of the processes that were alive in the last table."""
        return frozenset(self._known)

    def update(self, table: Table) -> float:
        """Take a new table; returns the seconds spent by the trees since their processes began."""
        if not self._root_keys:
            self._root_keys = {(pid, table[pid].started) for pid in self._roots if pid in table}
        alive = {key for key in self._root_keys | set(self._known) if _present(key, table)}
        alive |= _descendants(alive, table)
        for key in set(self._known) - alive:
            last = self._known.pop(key)
            if not last.parent_is_ours:
                self._kept_s += last.times.own_s + last.times.reaped_s
        pids = {pid for pid, _ in alive}
        for pid, started in alive:
            times = table[pid]
            self._known[(pid, started)] = _Last(times, times.parent in pids)
        spent = sum(last.times.own_s + last.times.reaped_s for last in self._known.values())
        return spent + self._kept_s


def _present(key: _Key, table: Table) -> bool:
    row = table.get(key[0])
    return row is not None and row.started == key[1]


def _descendants(keys: set[_Key], table: Table) -> set[_Key]:
    children: dict[int, list[ProcessTimes]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row)
    found: set[_Key] = set()
    to_visit = [pid for pid, _ in keys]
    while to_visit:
        for child in children.get(to_visit.pop(), ()):
            key = (child.pid, child.started)
            if key not in found:
                found.add(key)
                to_visit.append(child.pid)
    return found


class CpuMeter:
    """CPU seconds that the trees under some processes spend inside a ``with`` block.

    Missed is only what a process without a parent of ours (a root, or one that detached itself)
    spends between the last look and its end; ``poll_s`` bounds that. For one short child use
    :func:`sage_bench.child.run_child`, which is exact.

    Args:
        pids: the roots; their descendants of now and later are included.
        poll_s: seconds between looks of a thread (2 to 3 ms of CPU each); None: only at both ends.
        table: where process tables come from.

    Raises:
        BenchmarkError: a root does not exist when the block is entered.
    """

    def __init__(
        self,
        pids: Iterable[int],
        *,
        poll_s: float | None = 0.5,
        table: Callable[[], Table] = read_table,
    ) -> None:
        self._pids = tuple(dict.fromkeys(pids))
        self._poll_s = poll_s
        self._table = table
        self._tally = TreeTally(self._pids)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before = 0.0
        self._spent: float | None = None

    @property
    def cpu_s(self) -> float:
        """CPU seconds since the block was entered; fixed once it is left."""
        return self._look() - self._before if self._spent is None else self._spent

    def __enter__(self) -> CpuMeter:
        table = self._table()
        for pid in self._pids:
            if pid not in table:
                raise BenchmarkError(
                    f"cannot take the CPU time of process {pid}: it does not exist.",
                    hint="It may have ended before the measurement; look into its log.",
                )
        self._before = self._tally.update(table)
        if self._poll_s is not None:
            self._thread = threading.Thread(target=self._watch, name="cpu-meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        self._spent = self._look() - self._before

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._look()

    def _look(self) -> float:
        """A settled sum: a child that ends while the table is read is in neither its own row nor
        its parent's, so look again until two tables hold the same processes."""
        with self._lock:
            spent = self._tally.update(self._table())
            for _ in range(4):
                before = self._tally.members
                spent = self._tally.update(self._table())
                if self._tally.members == before:
                    break
            return spent
