"""Order of systems, warm-up, the A/A row, and failures that are kept."""

from __future__ import annotations

import itertools

import pytest

from sage_bench.interleave import interleave
from sage_bench.system import Case, Reading, System
from sage_prefect.common.errors import BenchmarkError


def _case(*names: str, calls: list[tuple[str, int]] | None = None) -> Case:
    def system(name: str, role: str) -> System:
        def measure(number: int) -> Reading:
            if calls is not None:
                calls.append((name, number))
            return Reading({"t": 1.0}, wall_s=1.0)

        return System(name, measure, role=role)  # type: ignore[arg-type]

    return Case("c", tuple(system(n, "subject" if i else "peer") for i, n in enumerate(names)))


def test_abba_gives_every_system_the_same_mean_position() -> None:
    found = [m for m in interleave([_case("A", "B", "C")], rounds=4, warmup=0) if not m.warmup]
    orders = ["".join(m.system[0] if m.role != "noise" else "a" for m in found[i : i + 4])
              for i in range(0, 16, 4)]  # fmt: skip
    assert orders == ["ABCa", "aCBA", "ABCa", "aCBA"]
    by_system = {name: [m.position for m in found if m.system == name] for name in
                 ("A", "B", "C", "A (A/A)")}  # fmt: skip
    assert {sum(positions) / 4 for positions in by_system.values()} == {1.5}


def test_abab_keeps_the_order() -> None:
    found = interleave([_case("A", "B")], rounds=2, warmup=0, order="ABAB")
    assert [m.system for m in found] == ["A", "B", "A (A/A)"] * 2


def test_warm_up_is_kept_marked_and_without_the_noise_row() -> None:
    calls: list[tuple[str, int]] = []
    found = list(interleave([_case("A", "B", calls=calls)], rounds=1, warmup=2))
    warm = [m for m in found if m.warmup]
    assert [m.round for m in warm] == [-2, -2, -1, -1]
    assert not any(m.counted for m in warm)
    assert {m.role for m in warm} == {"peer", "subject"}
    # The noise row is the peer itself, called again.
    assert sum(name == "A" for name, number in calls if number == 0) == 2


def test_the_noise_row_can_be_left_out() -> None:
    found = interleave([_case("A", "B")], rounds=1, warmup=0, noise_row=False)
    assert [m.system for m in found] == ["A", "B"]


def test_cases_take_turns_within_a_round() -> None:
    cases = [Case("x", _case("A").systems), Case("y", _case("A").systems)]
    found = list(interleave(cases, rounds=2, warmup=0))
    assert [(m.round, m.case) for m in found] == [
        (n, c) for n, c in itertools.product((0, 1), "xxyy")
    ]


def test_a_failing_system_is_counted_and_the_others_go_on() -> None:
    def explode(number: int) -> Reading:
        if number == 1:
            raise ValueError("no such luck")
        return Reading({"t": 1.0}, wall_s=1.0)

    case = Case("", (*_case("A").systems, System("B", explode)))
    found = list(interleave([case], rounds=3, warmup=0))
    failed = [m for m in found if m.error]
    assert [(m.system, m.round, m.error) for m in failed] == [("B", 1, "ValueError: no such luck")]
    assert not failed[0].counted
    assert len(found) == 9


def test_bad_input() -> None:
    with pytest.raises(BenchmarkError, match="0 rounds"):
        list(interleave([_case("A")], rounds=0))
    twice = Case("c", _case("A").systems * 2)
    with pytest.raises(BenchmarkError, match="2 peers"):
        list(interleave([twice], rounds=1))
    with pytest.raises(BenchmarkError, match="0 peers"):
        list(interleave([Case("c", ())], rounds=1))
