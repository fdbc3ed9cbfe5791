"""When a queue will have drained, by completions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.drain_rate import DrainRate


def drained_at(rate: float, seconds: float = 60.0) -> DrainRate:
    made = DrainRate()
    for number in range(int(rate * seconds)):
        made.count(number / rate)
    return made


def test_the_queue_drains_at_the_rate_of_completions() -> None:
    made = drained_at(10.0)
    assert made.retry_after(200, 60.0) in (20, 21)
    assert made.retry_after(400, 60.0) in (40, 41)
    assert drained_at(40.0).retry_after(400, 60.0) in (10, 11)


def test_nothing_known_and_nothing_queued() -> None:
    assert DrainRate().retry_after(5, 100.0) == 30
    assert drained_at(10.0).retry_after(0, 60.0) == 1
    # Long after the last completion the rate says nothing any more.
    assert drained_at(10.0).retry_after(5, 1e6) == 30


def test_old_completions_are_forgotten() -> None:
    made = drained_at(10.0)
    waits = [made.retry_after(20, 60.0 + later) for later in (0.0, 5.0, 10.0, 15.0)]
    assert waits == sorted(waits)
    assert waits[0] < 5 < waits[-1]


@given(st.integers(0, 10**9), st.floats(0, 1e6), st.lists(st.floats(0, 100), max_size=10))
def test_by_completions_it_is_a_second_to_a_minute_too(
    queued: int, now: float, pauses: list[float]
) -> None:
    made, at = DrainRate(), 0.0
    for pause in pauses:
        at += pause
        made.count(at)
    assert 1 <= made.retry_after(queued, at + now) <= 60
    assert made.retry_after(queued, at + now) <= made.retry_after(2 * queued, at + now)
