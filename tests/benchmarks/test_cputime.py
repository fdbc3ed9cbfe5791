"""CPU time of trees: the pure tally on made-up tables, the meter on real short-lived processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sage_bench.child import run_child
from sage_bench.cputime import CpuMeter, ProcessTimes, TreeTally, parse_stat, read_table
from sage_prefect.common.errors import BenchmarkError

# Spends CPU until its own clock has seen `seconds` of it: no assumption on the machine's speed.
BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def _table(*rows: tuple[int, int, float, float]) -> dict[int, ProcessTimes]:
    return {
        pid: ProcessTimes(pid, 100 + pid, parent, own, reaped) for pid, parent, own, reaped in rows
    }


def test_an_ended_child_moves_into_its_parents_time() -> None:
    tally = TreeTally([1])
    assert tally.update(_table((1, 0, 1.0, 0.0), (2, 1, 3.0, 0.0))) == 4.0
    assert tally.update(_table((1, 0, 1.0, 3.5))) == 4.5


def test_a_child_that_lost_its_parent_is_followed_and_kept() -> None:
    tally = TreeTally([1])
    tally.update(_table((1, 0, 0.0, 0.0), (2, 1, 1.0, 0.0), (3, 2, 2.0, 0.0)))
    # 2 ends; init adopts 3 and will reap it, so that its time shows nowhere of ours.
    assert tally.update(_table((1, 0, 0.0, 1.0), (3, 0, 2.5, 0.0))) == 3.5
    assert tally.update(_table((1, 0, 0.0, 1.0))) == 3.5


def test_descendants_of_a_detached_process_are_found() -> None:
    tally = TreeTally([1])
    tally.update(_table((1, 0, 0.0, 0.0), (2, 1, 1.0, 0.0)))
    assert tally.update(_table((1, 0, 0.0, 0.0), (2, 0, 1.0, 0.0), (9, 2, 4.0, 0.0))) == 5.0


def test_a_reused_pid_is_another_process() -> None:
    tally = TreeTally([1])
    tally.update(_table((1, 0, 0.0, 0.0), (2, 1, 1.0, 0.0)))
    table = _table((1, 0, 0.0, 1.0))
    table[2] = ProcessTimes(2, 999, 0, 50.0, 0.0)  # same pid, started later, not ours
    assert tally.update(table) == 1.0


def test_other_processes_do_not_count() -> None:
    assert TreeTally([5]).update(_table((1, 0, 7.0, 0.0), (5, 1, 2.0, 0.0))) == 2.0


def test_stat_line_with_a_spiteful_name() -> None:
    line = b"42 (a) b (c d) S 7 " + b" ".join(str(n).encode() for n in range(5, 5 + 40))
    row = parse_stat(line, ticks_per_s=10)
    # Fields 14 to 17 and 22 of proc(5); field n holds n here.
    assert row == ProcessTimes(42, 22, 7, (14 + 15) / 10, (16 + 17) / 10)


def test_the_table_knows_this_process() -> None:
    assert read_table()[os.getpid()].parent == os.getppid()


def test_short_lived_children_count() -> None:
    """Two generations, both ended before the block is left."""
    grandchild = BURN.format(seconds=0.3)
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])\n"
    with CpuMeter([os.getpid()], poll_s=None) as meter:
        subprocess.run([sys.executable, "-c", child], check=True)
    assert meter.cpu_s >= 0.28


def test_a_detached_grandchild_counts() -> None:
    """Its parent ends first; init adopts it while it spends 0.3 s, and it lives to the end."""
    hold, release = os.pipe()
    grandchild = (
        "import os\nprint('started', flush=True)\n"
        + BURN.format(seconds=0.3)
        + f"print('spent', flush=True)\nos.read({hold}, 1)\n"
    )
    child = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], pass_fds=[{hold}], "
        "stdin=subprocess.DEVNULL)\nsys.stdin.read(1)\n"
    )
    try:
        with CpuMeter([os.getpid()], poll_s=None) as meter:
            process = subprocess.Popen(
                [sys.executable, "-c", child],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(hold,),
            )
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            assert meter.cpu_s >= 0  # a look while it still has its parent
            process.stdin.close()
            process.wait()
            assert process.stdout.readline() == b"spent\n"
        assert meter.cpu_s >= 0.28
    finally:
        os.close(release)
        os.close(hold)
        process.stdout.read()  # until the grandchild has ended too
        process.stdout.close()


def test_the_figure_is_fixed_when_the_block_is_left() -> None:
    with CpuMeter([os.getpid()], poll_s=None) as meter:
        during = meter.cpu_s
    after = meter.cpu_s
    assert during <= after
    subprocess.run([sys.executable, "-c", BURN.format(seconds=0.1)], check=True)
    assert meter.cpu_s == after


def test_a_root_that_does_not_exist() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(BenchmarkError, match=f"process {ended.pid}"), CpuMeter([ended.pid]):
        pass


def test_run_child_reports_cost_and_output() -> None:
    child = run_child([sys.executable, "-c", BURN.format(seconds=0.1) + "print('done')"])
    assert child.stdout == "done\n"
    assert child.cpu_s >= 0.1
    assert child.peak_rss_bytes > 1 << 20


def test_run_child_failures() -> None:
    with pytest.raises(BenchmarkError, match="status 3: the reason"):
        run_child([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); "
                   "sys.exit(3)"])  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"longer than 0\.2 s"):
        run_child(["sleep", "60"], timeout_s=0.2)
    with pytest.raises(BenchmarkError, match="cannot start"):
        run_child(["/no/such/program"])
