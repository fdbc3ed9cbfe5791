"""The retry budget and the plan of one call, on a clock of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.inference.retry import RetryBudget, RetryPlan


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_budget(clock: Clock, floor: float = 5.0) -> RetryBudget:
    return RetryBudget(ratio=0.2, floor=floor, floor_period_s=10.0, ceiling=50.0, clock=clock)


def test_floor_then_nothing(clock: Clock) -> None:
    budget = make_budget(clock)
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]


def test_floor_refills_with_time_but_not_beyond(clock: Clock) -> None:
    budget = make_budget(clock)
    while budget.take():
        pass
    clock.now += 2.0
    assert budget.take()
    assert not budget.take()
    clock.now += 1000.0
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]


@given(st.lists(st.booleans(), max_size=400))
def test_retries_stay_below_a_fifth_of_the_calls_plus_the_floor(events: list[bool]) -> None:
    budget = make_budget(Clock())
    calls = retries = 0
    for is_call in events:
        if is_call:
            budget.call_made()
            calls += 1
        elif budget.take():
            retries += 1
        assert retries <= 0.2 * calls + 5 + 1e-6


def plan(
    clock: Clock, retries: int = 3, deadline: float = 1000.0, jitter: float = 1.0
) -> RetryPlan:
    return RetryPlan(
        retries,
        make_budget(clock),
        deadline,
        clock=clock,
        jitter=lambda: jitter,
        first_delay_s=0.25,
    )


def test_delays_double(clock: Clock) -> None:
    calls = plan(clock)
    assert [calls.delay_after_failure(None) for _ in range(4)] == [0.25, 0.5, 1.0, None]
    assert calls.made == 3


def test_jitter_never_reaches_zero(clock: Clock) -> None:
    assert plan(clock, jitter=0.0).delay_after_failure(None) == 0.125


def test_retry_after_is_honoured(clock: Clock) -> None:
    delay = plan(clock, jitter=0.0).delay_after_failure(7.0)
    assert delay == 7.0


def test_no_retry_that_cannot_finish_in_time(clock: Clock) -> None:
    short = plan(clock, deadline=clock.now + 5)
    assert short.delay_after_failure(7.0) is None
    assert short.delay_after_failure(None) == 0.25


def test_budget_is_shared(clock: Clock) -> None:
    budget = make_budget(clock, floor=1.0)
    first = RetryPlan(3, budget, 1000, clock=clock)
    second = RetryPlan(3, budget, 1000, clock=clock)
    assert first.delay_after_failure(None) is not None
    assert second.delay_after_failure(None) is None
