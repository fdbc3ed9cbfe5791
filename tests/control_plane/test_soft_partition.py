"""How many engines are left to batch work, and when that changes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.engine_load import EngineLoad
from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.events import Band, EngineProfile, EngineSpec, RequestInfo
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.soft_partition import SoftPartition

PARAMETERS = HybridParameters()
PERIOD, STEP = PARAMETERS.partition_period, PARAMETERS.partition_step
PROFILE = EngineProfile(c0=0.0299, a=65e-6, b=0.209e-3, g=1.62e-7, source="test")
PROMISE = 0.1
PROMPT, OUTPUT = 1000, 200
LONG = 120.0
"""The memory of demand, seconds."""
BACKLOG = 1000
"""Batch requests in the queue: there is always more than fits."""


def engine(name: str, *, latency: int = 0, batch: int = 0) -> EngineLoad:
    load = EngineLoad(
        EngineEntry(EngineSpec(name, ("m",), 256, profile=PROFILE)), PARAMETERS.window
    )
    for number in range(latency + batch):
        band = Band.INTERACTIVE if number < latency else Band.BATCH
        info = RequestInfo(f"{name}{number}", "m", stream=True)
        load.enter(ScheduledRequest(info, number, 0.0, band=band), 1.0, 10.0, 0.0)
    return load


def engines(count: int, *, batch: int = 1) -> list[EngineLoad]:
    return [engine(f"e{number}", batch=batch) for number in range(count)]


def preferred(loads: list[EngineLoad]) -> list[str]:
    return [load.entry.name for load in loads if load.batch_preferred]


def demand(partition: SoftPartition, rate: float, start: float, end: float) -> None:
    """Latency requests at an even rate per second, all alike."""
    for number in range(int((end - start) * rate)):
        partition.arrived(start + number / rate, PROMPT)
        partition.finished(OUTPUT)


def settled(
    partition: SoftPartition,
    loads: list[EngineLoad],
    now: float,
    turns: int = 40,
    waiting: int = BACKLOG,
) -> list[str]:
    """What it comes to when time passes and demand does not change any more."""
    for turn in range(turns):
        # Within one slot of the record of demand: what was measured stays.
        partition._next = partition._changed_at = -math.inf
        partition.turn(now + turn * 1e-6, loads, PROMISE, waiting)
    return preferred(loads)


def tpot_s(rate: float) -> float:
    """Time per token of an engine with ``rate`` requests per second, by iteration (Little)."""
    seconds = PROFILE.c0
    for _ in range(10_000):
        inside = rate * OUTPUT * seconds
        step = PROFILE.c0 + (PROFILE.b + PROFILE.g * (PROMPT + OUTPUT / 2)) * inside
        share = PROFILE.a * PROMPT * rate
        seconds = step / (1 - share) if share < 1 else math.inf
        if not seconds < 1e3:
            return math.inf
    return seconds


# -- how many ---------------------------------------------------------------------------------


def test_without_batch_work_none_is_preferred() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(4, batch=0)
    assert settled(partition, loads, 0.0) == []


def test_without_latency_work_all_but_one_are() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(4)
    assert len(settled(partition, loads, 0.0)) == 3


@given(count=st.integers(1, 6), rates=st.lists(st.sampled_from([0.0, 1.0, 20.0]), max_size=4))
def test_the_last_engine_stays_with_latency_work(count: int, rates: list[float]) -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(count)
    for number, rate in enumerate(rates):
        demand(partition, rate, number * LONG, number * LONG + 20.0)
        for turn in range(30):
            partition.turn(number * LONG + 20.0 + turn * PERIOD, loads, PROMISE, BACKLOG)
            assert len(preferred(loads)) < count


@pytest.mark.parametrize("rate", [0.5, 3.0, 6.0, 9.0, 12.0, 15.0, 30.0])
def test_as_many_are_kept_as_demand_needs_and_no_more(rate: float) -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    demand(partition, rate, 0.0, 50.0)
    kept = 6 - len(settled(partition, loads, 50.0))
    limit = PARAMETERS.partition_tpot * PROMISE
    counted = PARAMETERS.partition_margin * int(10 * rate) / 10
    if kept < 6:
        assert tpot_s(counted / kept) <= limit
    if kept > 1:
        assert tpot_s(counted / (kept - 1)) > limit


@pytest.mark.parametrize(
    ("inside", "waiting", "used"),
    [(1, 0, 1), (4, 0, 1), (4, 12, 1), (4, 13, 2), (8, 25, 3), (4, BACKLOG, 5)],
)
def test_no_more_are_preferred_than_batch_work_fills(inside: int, waiting: int, used: int) -> None:
    """Six engines, of which latency work needs one, and 16 batch requests fill another."""
    partition = SoftPartition(PARAMETERS)
    loads = [engine(f"e{n}", batch=inside // 4 if inside >= 4 else int(n == 0)) for n in range(4)]
    loads += [engine("e4"), engine("e5")]
    demand(partition, 0.5, 0.0, 50.0)
    assert len(settled(partition, loads, 50.0, waiting=waiting)) == used


def test_an_engine_is_taken_back_when_batch_work_hardly_needs_it() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(4)
    demand(partition, 0.5, 0.0, 50.0)
    assert len(settled(partition, loads, 50.0, waiting=30)) == 3  # 34 of them
    assert len(settled(partition, loads, 50.0, waiting=26)) == 3  # 30: nearly as many
    assert len(settled(partition, loads, 50.0, waiting=20)) == 2
    assert len(settled(partition, loads, 50.0, waiting=0)) == 1


def test_none_is_spared_while_one_of_them_is_unknown() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(4)
    loads[2].model = EngineModel(None)
    demand(partition, 1.0, 0.0, 50.0)
    assert settled(partition, loads, 50.0) == []
    loads[2].model.known = True
    assert settled(partition, loads, 50.0)


@given(
    began=st.integers(0, 10**6).map(lambda n: n / 4),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=50, max_size=200),
)
def test_when_the_clock_began_does_not_matter(began: float, gaps: list[float]) -> None:
    """Equal arrivals give equal decisions, in virtual time and by any machine's clock."""
    kept = []
    for start in (0.0, began):
        partition, loads, now = SoftPartition(PARAMETERS), engines(4), start
        for gap in gaps:
            # By whole quarters: floating point must not decide on which side of a border it falls.
            now += round(4 * gap) / 4
            partition.arrived(now, PROMPT)
            partition.finished(OUTPUT)
        kept.append(settled(partition, loads, now))
    assert kept[0] == kept[1]


def test_it_is_sized_by_the_peak_and_not_by_the_mean() -> None:
    burst, steady = SoftPartition(PARAMETERS), SoftPartition(PARAMETERS)
    demand(burst, 1.0, 0.0, 20.0)
    demand(burst, 16.0, 20.0, 40.0)
    demand(burst, 1.0, 40.0, 100.0)
    demand(steady, 16.0, 0.0, 100.0)
    loads, others = engines(6), engines(6)
    assert len(settled(burst, loads, 100.0)) == len(settled(steady, others, 100.0)) < 4


def test_ten_seconds_count_when_they_are_over() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    demand(partition, 1.0, 0.0, 50.0)
    demand(partition, 60.0, 50.0, 54.0)
    before = settled(partition, loads, 54.0)
    after = settled(partition, loads, 60.0)
    assert len(after) < len(before) == 5


def test_a_peak_is_forgotten_after_two_minutes() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    demand(partition, 16.0, 0.0, 20.0)
    demand(partition, 0.1, 20.0, 200.0)
    assert len(settled(partition, loads, 200.0)) == 5


def test_a_long_silence_is_no_demand() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(3)
    demand(partition, 16.0, 0.0, 20.0)
    assert len(settled(partition, loads, 1e6)) == 2


def test_longer_answers_need_more_engines() -> None:
    short, long = SoftPartition(PARAMETERS), SoftPartition(PARAMETERS)
    for partition, output in ((short, 50), (long, 400)):
        for number in range(300):
            partition.arrived(number * 0.1, PROMPT)
            partition.finished(output)
    assert len(settled(short, engines(6), 30.0)) > len(settled(long, engines(6), 30.0))


# -- when and which ---------------------------------------------------------------------------


def test_one_engine_per_change_and_changes_have_their_distance() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    counts, now = [], 0.0
    for _ in range(200):
        partition.turn(now, loads, PROMISE, BACKLOG)
        counts.append(len(preferred(loads)))
        now += 0.25
    assert counts[0] == 1
    rises = [at * 0.25 for at in range(1, 200) if counts[at] != counts[at - 1]]
    assert all(counts[at] - counts[at - 1] in (0, 1) for at in range(1, 200))
    assert rises == [pytest.approx(STEP * (one + 1)) for one in range(len(rises))]
    assert counts[-1] == 5


def test_what_demand_needs_is_given_back_at_once_one_by_one() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    now = 0.0
    while len(preferred(loads)) < 5:
        partition.turn(now, loads, PROMISE, BACKLOG)
        now += PERIOD
    # The last change was just now: taking another would have to wait, giving back does not.
    demand(partition, 60.0, now, now + 10.0)
    counts = []
    for turn in range(8):
        partition.turn(now + 11.0 + turn * PERIOD, loads, PROMISE, BACKLOG)
        counts.append(len(preferred(loads)))
    assert counts == [4, 3, 2, 1, 0, 0, 0, 0]


def test_nothing_changes_within_a_period() -> None:
    partition, loads = SoftPartition(PARAMETERS), engines(6)
    partition.turn(0.0, loads, PROMISE, BACKLOG)
    for load in loads:
        load.batch_preferred = True
    partition.turn(0.99 * PERIOD, loads, PROMISE, BACKLOG)
    assert len(preferred(loads)) == 6
    partition.turn(PERIOD, loads, PROMISE, BACKLOG)
    assert len(preferred(loads)) == 5


def test_between_taking_and_giving_back_there_is_slack() -> None:
    """At a demand on the edge it does not swing: what was taken just so is kept."""
    limit = PARAMETERS.partition_tpot * PROMISE
    rate = 0.1
    while tpot_s(PARAMETERS.partition_margin * rate) <= limit:
        rate += 0.1
    partition, loads = SoftPartition(PARAMETERS), engines(2)
    demand(partition, rate, 0.0, 50.0)
    assert settled(partition, loads, 50.0) == []
    loads[0].batch_preferred = True
    assert settled(partition, loads, 50.0) == ["e0"]


def test_the_engine_with_the_least_latency_work_is_taken_and_the_busiest_given_back() -> None:
    partition = SoftPartition(PARAMETERS)
    loads = [
        engine("busy", latency=9, batch=1),
        engine("idle", latency=1, batch=0),
        engine("mixed", latency=1, batch=5),
    ]
    partition.turn(0.0, loads, PROMISE, BACKLOG)
    assert preferred(loads) == ["mixed"]
    for load in loads:
        load.batch_preferred = True
    partition.turn(PERIOD, loads, PROMISE, BACKLOG)
    assert preferred(loads) == ["idle", "mixed"]


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 5), min_size=1), st.floats(0, 40), st.floats(0, 30)),
        max_size=25,
    )
)
def test_engines_come_and_go(steps: list[tuple[set[int], float, float]]) -> None:
    """Some are away at times: one change per call, and never more than all but one for long."""
    partition, everything = SoftPartition(PARAMETERS), engines(6)
    now = 0.0
    for present, rate, pause in steps:
        loads = [everything[number] for number in sorted(present)]
        before = preferred(everything)
        demand(partition, rate, now, now + 1.0)
        now += 1.0 + pause
        partition.turn(now, loads, PROMISE, BACKLOG)
        assert len(set(before) ^ set(preferred(everything))) <= 1
    loads = everything[:3]
    for _ in range(4):
        now += PERIOD
        partition.turn(now, loads, PROMISE, BACKLOG)
    assert len(preferred(loads)) <= 2


def test_without_engines_or_ever_slower_ones_nothing_breaks() -> None:
    partition = SoftPartition(PARAMETERS)
    demand(partition, 1e4, 0.0, 1.0)
    partition.turn(0.0, [], PROMISE)
    loads = engines(3)
    partition.turn(PERIOD, loads, 0.0)
    partition.turn(2 * PERIOD, loads, math.inf)
    assert len(preferred(loads)) <= 2
