"""Process identity, markers and strays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sage_prefect.platform.processes import (
    ProcessId,
    end_strays,
    identify,
    is_alive,
    members,
    send,
)

Eventually = Callable[..., None]


@contextmanager
def sleeper(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_identity_is_pid_and_start() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.start_ticks + 1))


def test_a_zombie_is_not_alive(eventually: Eventually) -> None:
    with sleeper() as process:
        known = identify(process.pid)
        assert known is not None
        process.kill()
        eventually(lambda: not is_alive(known))


def test_a_strange_name_is_parsed(tmp_path: Path) -> None:
    program = tmp_path / "a ) b (c"
    program.symlink_to(sys.executable)
    process = subprocess.Popen([str(program), "-c", "import time; time.sleep(600)"])
    try:
        assert identify(process.pid) is not None
    finally:
        process.kill()
        process.wait()


def test_members_by_marker_and_service(tmp_path: Path) -> None:
    marker = str(tmp_path)
    with (
        sleeper(SAGE_SUPERVISOR=marker, SAGE_SERVICE="a") as a,
        sleeper(SAGE_SUPERVISOR=marker, SAGE_SERVICE="b") as b,
        sleeper(SAGE_SUPERVISOR=marker + "x", SAGE_SERVICE="a"),
    ):
        assert {p.pid for p in members(marker)} == {a.pid, b.pid}
        assert {p.pid for p in members(marker, "a")} == {a.pid}


def test_signals_do_not_reach_a_reused_id() -> None:
    with sleeper() as process:
        known = identify(process.pid)
        assert known is not None
        send([ProcessId(known.pid, known.start_ticks - 1)], signal.SIGKILL)
        assert process.poll() is None


def test_strays_are_ended_even_when_deaf(tmp_path: Path, eventually: Eventually) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    )
    environment = {**os.environ, "SAGE_SUPERVISOR": str(tmp_path), "SAGE_SERVICE": "deaf"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        eventually(ready.exists)
        assert end_strays(str(tmp_path), timeout_s=0.1) == 1
        assert process.wait() == -signal.SIGKILL
        assert end_strays(str(tmp_path)) == 0
    finally:
        process.kill()
        process.wait()
