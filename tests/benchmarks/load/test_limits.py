"""The search for the load generator's limit; measured for real in tests/e2e/test_mock_engine.py."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sage_bench.load import limits
from sage_bench.load.limits import Step, find_limit, last_valid, rates_from
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

STEP = Step(100, 100, 6400, 1.0, 0.1, 10.0, 0.2, 20.0, ())


def test_rates_grow_by_a_quarter() -> None:
    assert list(itertools.islice(rates_from(64.0), 3)) == [64.0, 80.0, 100.0]
    for wrong in (0.0, -1.0, float("nan"), 1e7):
        with pytest.raises(BenchmarkError, match="first rate"):
            next(rates_from(wrong))


def test_the_last_valid_step() -> None:
    late = replace(STEP, rate=200, problems=("late",))
    assert last_valid([STEP, replace(STEP, rate=150), late]) == replace(STEP, rate=150)
    assert last_valid([late]) is None
    assert last_valid([]) is None
    assert STEP.to_json()["chunks"] == 6400


def test_unknown_loads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="chunks"):
        find_limit("chunk", 1.0, 2.0, tmp_path / "log")


@pytest.mark.parametrize("stops_at", [1, 4])
def test_the_rate_rises_until_a_run_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int
) -> None:
    rates: list[float] = []
    tries: list[float] = []

    class Engines:
        pid = 1

        def __init__(self, name: str, command: list[str], **_: Any) -> None:
            assert "mock-engine" in command

        def __enter__(self) -> Engines:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def step(shape: Any, rate: float, *_: Any) -> Step:
        if rate not in rates:
            rates.append(rate)
        tries.append(rate)
        # The first try of any rate is late; the last rate is too high.
        late = tries.count(rate) == 1 or len(rates) == stops_at
        return replace(STEP, rate=rate, problems=("late",) if late else ())

    monkeypatch.setattr(limits, "Server", Engines)
    monkeypatch.setattr(limits, "_targets", lambda server: ())
    monkeypatch.setattr(limits, "_step", step)
    steps = find_limit("chunks", 64.0, 2.0, tmp_path / "log", most_steps=6)
    assert [one.rate for one in steps] == rates
    assert len(steps) == stops_at
    assert len(tries) == 2 * (stops_at - 1) + limits.TRIES
    assert [bool(one.problems) for one in steps] == [False] * (stops_at - 1) + [True]
    monkeypatch.setattr(limits, "_step", lambda *_: STEP)
    assert len(find_limit("requests", 64.0, 2.0, tmp_path / "log", most_steps=3)) == 3
