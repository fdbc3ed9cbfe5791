"""Workers: a live object in a child process, its errors, its death."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sage_bench.worker import Worker, timed
from sage_prefect.common.errors import BenchmarkError


class Talker:
    """What the workers of these tests run (imported there from this file's folder)."""

    def __init__(self, greeting: str) -> None:
        print("libraries print things")
        self.greeting = greeting
        self.calls = 0

    def greet(self, name: str) -> dict[str, object]:
        self.calls += 1
        print("more of it")
        return {"said": f"{self.greeting} {name}", "calls": self.calls, "pid": os.getpid()}

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def fail(self) -> None:
        raise ValueError("no such luck")

    def die(self) -> None:
        os._exit(7)


@pytest.fixture
def env() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parent), "COUNT": "3"}


def test_calls_reach_one_living_object(tmp_path: Path, env: dict[str, str]) -> None:
    log = tmp_path / "worker.log"
    with Worker("test_worker:Talker", {"greeting": "hello"}, log=log, env=env) as worker:
        assert worker.call("greet", name="a")["said"] == "hello a"
        again = worker.call("greet", name="b")
        assert (again["calls"], again["pid"]) == (2, worker.pid)
        assert worker.call("environment", name="COUNT") == "3"
    # What libraries print does not disturb the answers.
    assert "libraries print things" in log.read_text()


def test_an_error_in_a_call_is_raised_here_and_the_worker_lives(
    tmp_path: Path, env: dict[str, str]
) -> None:
    with Worker("test_worker:Talker", {"greeting": "x"}, log=tmp_path / "l", env=env) as worker:
        with pytest.raises(BenchmarkError, match="ValueError: no such luck"):
            worker.call("fail")
        with pytest.raises(BenchmarkError, match="AttributeError"):
            worker.call("nothing")
        assert worker.call("greet", name="a")["calls"] == 1


def test_a_worker_that_cannot_start_or_dies(tmp_path: Path, env: dict[str, str]) -> None:
    with pytest.raises(BenchmarkError, match="No module named 'no_such_module'"):
        Worker("no_such_module:X", {}, log=tmp_path / "l", env=env).__enter__()
    with (
        Worker("test_worker:Talker", {"greeting": "x"}, log=tmp_path / "l", env=env) as worker,
        pytest.raises(BenchmarkError, match="died with status 7"),
    ):
        worker.call("die")


def test_a_worker_is_renewed_once_per_generation(tmp_path: Path, env: dict[str, str]) -> None:
    with Worker("test_worker:Talker", {"greeting": "x"}, log=tmp_path / "l", env=env) as worker:
        pids = []
        for generation in (0, 0, 1):
            worker.renew(generation)
            pids.append(worker.call("greet", name="a")["pid"])
        assert pids[0] == pids[1] != pids[2]


def test_timed() -> None:
    cost, result = timed(lambda: sum(range(100_000)))
    assert result == 4999950000
    assert cost["wall_s"] > 0
    assert cost["cpu_s"] >= 0
