"""The predicted wait of a queue, and when to come again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.admission import Drain, retry_after_s
from sage_prefect.control_plane.events import Band

TAU = 5.0
SECONDS = st.floats(0, 1e6)
QUEUED = st.tuples(*(st.floats(0, 1e4) for _ in Band))


def drain(capacity: float = 4.0, **queued: float) -> Drain:
    made = Drain(TAU, capacity, 0.0)
    for name, seconds in queued.items():
        made.queued[Band[name]] = seconds
    return made


# -- the wait ---------------------------------------------------------------------------------


def test_at_first_each_engine_does_a_second_per_second() -> None:
    assert drain(4.0, STANDARD=8.0).wait_s(Band.STANDARD, math.inf, 0.0, 0.0) == 2.0


def test_more_urgent_bands_go_first_and_less_urgent_ones_do_not_count() -> None:
    made = drain(1.0, CRITICAL=1.0, INTERACTIVE=2.0, STANDARD=4.0, BATCH=8.0)
    waits = [made.wait_s(band, math.inf, 0.0, 0.0) for band in Band]
    assert waits == [1.0, 3.0, 7.0, 15.0]


def test_of_its_own_band_only_what_goes_before_it_counts() -> None:
    made = drain(1.0, CRITICAL=1.0, STANDARD=4.0)
    assert made.wait_s(Band.STANDARD, 0.5, 0.0, 0.0) == 1.5
    assert made.wait_s(Band.STANDARD, 50.0, 0.0, 0.0) == 5.0


def test_an_empty_queue_is_no_wait() -> None:
    assert drain(0.0).wait_s(Band.BATCH, math.inf, 1e9, 0.0) == 0.0


def test_the_rate_follows_what_has_drained() -> None:
    made = drain(4.0, STANDARD=10.0)
    for turn in range(400):  # two engine-seconds per second
        made.drained(Band.STANDARD, 0.2, turn * 0.1)
    assert made.wait_s(Band.STANDARD, math.inf, 40.0, 0.0) == pytest.approx(5.0, rel=0.02)
    # What has drained of this band says nothing of the speed of more urgent ones.
    made.queued[Band.CRITICAL] = 1.0
    assert made.wait_s(Band.CRITICAL, math.inf, 40.0, 0.0) > 100.0
    made.queued[Band.BATCH] = 10.0
    assert made.wait_s(Band.BATCH, math.inf, 40.0, 0.0) == pytest.approx(10.5, rel=0.02)


def test_engines_that_stood_idle_count_with_the_floor() -> None:
    made = drain(4.0, STANDARD=10.0)
    assert made.wait_s(Band.STANDARD, math.inf, 1e6, 2.0) == 5.0
    assert made.wait_s(Band.STANDARD, math.inf, 1e6, 0.0) < math.inf


def test_a_clock_that_steps_back_changes_nothing() -> None:
    made = drain(4.0, STANDARD=8.0)
    made.drained(Band.BATCH, 0.0, 10.0)
    wait = made.wait_s(Band.STANDARD, math.inf, 10.0, 0.0)
    assert made.wait_s(Band.STANDARD, math.inf, 3.0, 0.0) == wait


@given(
    queued=QUEUED,
    more=QUEUED,
    band=st.sampled_from(Band),
    ahead=st.tuples(SECONDS, SECONDS),
    drained=st.lists(st.tuples(st.sampled_from(Band), st.floats(0, 10)), max_size=10),
)
def test_a_longer_queue_is_never_predicted_to_be_shorter(
    queued: tuple[float, ...],
    more: tuple[float, ...],
    band: Band,
    ahead: tuple[float, float],
    drained: list[tuple[Band, float]],
) -> None:
    short, long = drain(2.0), drain(2.0)
    for at, (of, seconds) in enumerate(drained):
        short.drained(of, seconds, float(at))
        long.drained(of, seconds, float(at))
    short.queued = list(queued)
    long.queued = [one + other for one, other in zip(queued, more, strict=True)]
    less, greater = min(ahead), max(ahead)
    wait = short.wait_s(band, less, 10.0, 0.5)
    assert 0.0 <= wait <= long.wait_s(band, less, 10.0, 0.5)
    assert wait <= short.wait_s(band, greater, 10.0, 0.5)


@given(st.sampled_from(Band), st.floats(0, 100), st.floats(0, 100))
def test_the_faster_it_drains_the_shorter_the_wait(band: Band, one: float, other: float) -> None:
    waits = []
    for seconds in sorted((one, other)):
        made = drain(1.0, CRITICAL=1.0, INTERACTIVE=1.0, STANDARD=1.0, BATCH=1.0)
        made.drained(Band.CRITICAL, seconds, 1.0)
        waits.append(made.wait_s(band, math.inf, 1.0, 0.0))
    assert waits[0] >= waits[1]


# -- Retry-After ------------------------------------------------------------------------------


@given(st.floats(-1e12, 1e12), st.floats(0, 1))
def test_it_is_worth_trying_again_after_a_second_to_a_minute(excess: float, spread: float) -> None:
    after = retry_after_s(excess, spread)
    assert isinstance(after, int)
    assert 1 <= after <= 60
    assert after >= min(60.0, excess)


@pytest.mark.parametrize(
    ("excess", "spread", "after"),
    [(-5.0, 1.0, 1), (0.0, 0.0, 1), (10.0, 0.0, 10), (10.0, 1.0, 13), (10.1, 0.0, 11), (55, 1, 60)],
)
def test_it_is_the_excess_spread_by_a_third(excess: float, spread: float, after: int) -> None:
    assert retry_after_s(excess, spread) == after
