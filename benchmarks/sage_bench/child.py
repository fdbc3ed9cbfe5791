"""One short child process, with its exact cost."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sage_prefect.common.errors import BenchmarkError


@dataclass(frozen=True)
class ChildRun:
    """What a child did and cost. ``cpu_s`` includes the descendants that it waited for."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


def run_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120.0,
) -> ChildRun:
    """Run ``argv`` to its end and return its output, wall time and CPU time (us resolution).

    Raises:
        BenchmarkError: it cannot be started, ends with another status than 0, or takes longer
            than ``timeout_s`` (it is killed then).
    """
    # Files, not pipes: nobody has to read while wait4() waits.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        try:
            child = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd
            )
        except OSError as error:
            raise BenchmarkError(f"cannot start {argv[0]!r}: {error}.") from error
        late = threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
            timer.join()
        wall_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    command = " ".join(argv)
    if late.is_set():
        raise BenchmarkError(f"`{command}` took longer than {timeout_s:g} s and was killed.")
    if child.returncode != 0:
        last = texts[1].strip().splitlines()[-1:] or ["(no message)"]
        raise BenchmarkError(f"`{command}` ended with status {child.returncode}: {last[0]}")
    return ChildRun(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        stdout=texts[0],
        stderr=texts[1],
    )
