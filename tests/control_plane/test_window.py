"""One engine's windows: how they grow, shrink and give way, and the bounds that always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.window import (
    COLD,
    FLOOR,
    MIN_SAMPLES,
    PERIOD_S,
    START,
    Window,
    WindowRules,
)

RULES = WindowRules()
CLEAN = 0.5
"""Share of the promise at which all is well, for both measures."""


def turned(window: Window, *, tpot: float = CLEAN, ttft: float = CLEAN, batch: int = 0) -> Window:
    """One turn of the control loop with enough samples at these shares of the promises."""
    for _ in range(MIN_SAMPLES):
        window.saw_tpot(tpot)
        window.saw_ttft(ttft)
    window.turn(window.next_at, batch)
    return window


def shrunk(size: int = 64) -> Window:
    window = Window(256, RULES)
    window.size = window.batch = size
    return window


# -- start ------------------------------------------------------------------------------------


def test_it_begins_at_the_engines_own_limit_and_small_for_batch_work() -> None:
    window = Window(256, RULES)
    assert (window.size, window.batch, window.gate) == (256, START, RULES.gate)
    assert Window(4, RULES).batch == Window(4, RULES).size == 4
    assert Window(0, RULES).size == 1


def test_a_cold_engine_begins_small_and_doubles_while_all_is_well() -> None:
    window = Window(100, RULES, cold=True)
    sizes = [window.size]
    for _ in range(5):
        window.full = True
        sizes.append(turned(window).size)
    assert sizes == [COLD, 2 * COLD, 4 * COLD, 8 * COLD, 100, 100]
    assert Window(4, RULES, cold=True).size == 4


def test_slow_start_ends_with_the_first_breach() -> None:
    window = Window(256, RULES, cold=True)
    window.full = True
    turned(window)
    before = turned(window, tpot=RULES.high_tpot + 0.01).size
    window.full = True
    assert turned(window).size == before + RULES.increase


# -- growth and decrease ----------------------------------------------------------------------


def test_it_grows_by_a_constant_and_only_while_full() -> None:
    window = shrunk()
    assert turned(window).size == 64
    window.full = True
    assert turned(window).size == 64 + RULES.increase
    # That it was full is forgotten with the turn.
    assert turned(window).size == 64 + RULES.increase


@pytest.mark.parametrize("tpot", [RULES.high_tpot + 0.01, 1.1, 1.5, 10.0])
def test_it_shrinks_in_proportion_to_the_breach_but_by_a_fifth_at_most(tpot: float) -> None:
    window = shrunk(200)
    window.full = True
    expected = int(200 * max(0.8, RULES.high_tpot / tpot))
    assert turned(window, tpot=tpot).size == expected < 200


def test_at_the_bound_itself_it_still_grows() -> None:
    window = shrunk()
    window.full = True
    assert turned(window, tpot=RULES.high_tpot).size == 64 + RULES.increase


def test_batch_work_gives_way_before_the_window_shrinks() -> None:
    window = shrunk()
    turned(window, tpot=1.5, batch=1)
    assert window.size == 64
    assert window.batch == int(64 * RULES.batch_decrease)
    turned(window, tpot=1.5, batch=0)
    assert window.size < 64


def test_time_to_first_token_trims_batch_work_but_not_the_window() -> None:
    window = shrunk()
    turned(window, ttft=RULES.batch_high_ttft + 0.01)
    assert (window.size, window.batch) == (64, int(64 * RULES.batch_decrease))


def test_batch_work_grows_by_a_constant_while_full_and_up_to_the_window() -> None:
    window = shrunk(20)
    window.batch = 17
    assert turned(window).batch == 17
    grown = []
    for _ in range(3):
        window.full_batch = True
        grown.append(turned(window).batch)
    assert grown == [min(20, 17 + RULES.batch_increase * times) for times in (1, 2, 3)]


def test_batch_work_always_keeps_a_place() -> None:
    window = shrunk()
    for _ in range(60):
        turned(window, tpot=2.0, ttft=2.0)
    assert window.batch == 1
    assert window.size == FLOOR


def test_the_gate_falls_only_when_a_promise_is_broken_and_recovers_slowly() -> None:
    window = shrunk()
    near = turned(window, tpot=0.99).gate  # near the promise, but kept
    assert near == RULES.gate
    broken = turned(window, ttft=1.01).gate
    assert broken == pytest.approx(RULES.gate - RULES.gate_down)
    assert turned(window).gate == pytest.approx(broken + RULES.gate_up)
    for _ in range(100):
        turned(window, tpot=1.5)
    assert window.gate == RULES.gate_low
    for _ in range(1000):
        turned(window)
    assert window.gate == RULES.gate_high


def test_a_few_slow_answers_in_a_hundred_are_not_a_breach() -> None:
    window = shrunk()
    for number in range(100):
        window.saw_tpot(5.0 if number < 4 else CLEAN)
    window.turn(0.0)
    assert (window.size, window.batch) == (64, 64)
    for number in range(100):
        window.saw_tpot(5.0 if number < 6 else CLEAN)
    window.turn(window.next_at)
    assert window.size < 64


def test_preemption_shrinks_at_once() -> None:
    window = shrunk()
    window.preempted()
    assert window.size == int(64 * 0.9)
    for _ in range(100):
        window.preempted()
    assert window.size == FLOOR


def test_an_engine_with_another_limit_takes_the_window_along() -> None:
    window = shrunk(64)
    window.limit(32)
    assert (window.ceiling, window.size, window.batch) == (32, 32, 32)
    window.limit(128)
    assert (window.ceiling, window.size, window.batch) == (128, 32, 32)


# -- when -------------------------------------------------------------------------------------


def test_it_turns_once_per_period() -> None:
    window = shrunk()
    turned(window, tpot=1.5)
    size, at = window.size, window.next_at
    for _ in range(MIN_SAMPLES):
        window.saw_tpot(1.5)
    window.turn(at - 0.01)
    assert window.size == size
    window.turn(at)
    assert window.size < size
    assert window.next_at == at + PERIOD_S


def test_few_samples_are_waited_for_twice_as_long() -> None:
    window = shrunk()
    turned(window)
    at = window.next_at
    window.saw_tpot(1.5)
    window.turn(at + PERIOD_S - 0.01)
    assert window.size == 64
    window.turn(at + PERIOD_S)
    assert window.size < 64


def test_samples_count_once() -> None:
    window = turned(shrunk(), tpot=1.5)
    assert turned(window).size == window.size == int(64 * 0.8)


def test_where_nothing_is_promised_nothing_holds_it_back() -> None:
    window = shrunk(10)
    gate = window.gate
    window.turn(0.0)
    assert window.size == 20
    assert window.gate == gate


# -- bounds -----------------------------------------------------------------------------------

SHARES = st.floats(0, 100)
STEP = st.one_of(
    st.tuples(st.just("samples"), st.lists(st.tuples(SHARES, SHARES), max_size=12)),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("preempted"), st.none()),
    st.tuples(st.just("limit"), st.integers(-5, 400)),
    st.tuples(st.just("turn"), st.tuples(st.floats(0, 10), st.integers(0, 300))),
)


@given(
    ceiling=st.integers(-5, 400),
    cold=st.booleans(),
    steps=st.lists(STEP, max_size=60),
)
def test_its_bounds_hold_whatever_happens(ceiling: int, cold: bool, steps: list) -> None:  # type: ignore[type-arg]
    window = Window(ceiling, RULES, cold=cold)
    now = 0.0
    for what, value in steps:
        if what == "samples":
            for tpot, ttft in value:
                window.saw_tpot(tpot)
                window.saw_ttft(ttft)
        elif what == "full":
            window.full = window.full_batch = value
        elif what == "preempted":
            window.preempted()
        elif what == "limit":
            window.limit(value)
        else:
            now += value[0]
            window.turn(now, value[1])
        assert min(FLOOR, window.ceiling) <= window.size <= window.ceiling
        assert 1 <= window.batch <= window.size
        assert RULES.gate_low <= window.gate <= RULES.gate_high
