"""The manager never raises on an event from outside, whatever numbers and names it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    BatchDone,
    BatchFailed,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineGauges,
    EngineProfile,
    EngineRemoved,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    LimitsChanged,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

HUGE = 10**400
NUMBER: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, 2, 8, 0.5, 30.0, 1e-9, 1e300, -1, -0.5, -HUGE, HUGE, math.nan, math.inf, -math.inf]
)
COUNT: st.SearchStrategy[Any] = st.sampled_from([0, 1, 3, 500, -1, HUGE, -HUGE, math.nan])
# The classifier makes hashes; what is outside does not.
HASH: st.SearchStrategy[Any] = st.sampled_from([0, 1, 3, 500, -1, HUGE, -HUGE])
MAYBE = st.none() | NUMBER
SOME = st.none() | COUNT
IDS = ("r1", "r2", "r3", "r4", "")
ID = st.sampled_from(IDS)
ENGINE = st.sampled_from(["e1", "e2", "", "nowhere"])
MODEL = st.sampled_from(["m", "n", "", "nobody"])
TENANT = st.sampled_from(["t1", "t2", ""])
CAUSE, STATE, BAND = (st.sampled_from(kind) for kind in (FailureCause, EngineState, Band))

REQUESTS = st.builds(
    RequestInfo,
    ID,
    MODEL,
    st.sampled_from(["chat", "completion", "embedding", "rerank"]),
    TENANT,
    BAND,
    st.booleans(),
    COUNT,
    COUNT,
    SOME,
    MAYBE,
    st.none() | ID,
    MAYBE,
    MAYBE,
    SOME,
    st.lists(HASH, max_size=3).map(tuple),
    st.lists(COUNT, max_size=3).map(tuple),
    st.lists(HASH, max_size=3).map(tuple),
    answers=SOME,
    merge_key=st.none() | st.integers(0, 2),
)
PROFILES = st.none() | st.builds(EngineProfile, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER)
SPECS = st.builds(
    EngineSpec,
    ENGINE,
    st.lists(MODEL, max_size=2).map(tuple),
    COUNT,
    price=NUMBER,
    profile=PROFILES,
    kv_tokens=SOME,
    max_batch_tokens=SOME,
    padded=st.booleans(),
    cold=st.booleans(),
)
BANDS = st.builds(BandSpec, BAND, MAYBE, MAYBE, NUMBER, MAYBE, MAYBE)
TENANTS = st.builds(TenantSpec, TENANT, NUMBER, SOME, SOME)
GAUGES = st.none() | st.builds(EngineGauges, MAYBE, MAYBE, MAYBE, MAYBE)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Arrival, REQUESTS),
    st.builds(Arrival, REQUESTS),
    st.builds(FirstToken, ID),
    st.builds(Progress, ID, COUNT),
    st.builds(Done, ID, SOME, SOME, SOME),
    st.builds(Failed, ID, ENGINE, CAUSE, st.booleans()),
    st.builds(Cancel, ID),
    st.builds(BatchDone, COUNT, SOME),
    st.builds(BatchFailed, COUNT, ENGINE, CAUSE, st.booleans()),
    st.builds(EngineReport, ENGINE, STATE, gauges=GAUGES),
    st.builds(EngineAdded, SPECS),
    st.builds(EngineAdded, st.builds(EngineSpec, ENGINE, st.just(("m", "n")), st.just(2))),
    st.builds(EngineRemoved, ENGINE, st.booleans()),
    st.builds(PolicyChanged, st.sampled_from([*POLICIES, "", "fifa"])),
    st.builds(LimitsChanged, st.builds(Limits, COUNT, COUNT, NUMBER, COUNT, NUMBER)),
    st.builds(BandsChanged, st.lists(BANDS, max_size=2).map(tuple)),
    st.builds(TenantsChanged, st.lists(TENANTS, max_size=2).map(tuple)),
    st.just(Timer()),
)
STEPS = st.lists(st.tuples(EVENTS, NUMBER), max_size=40)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_nothing_raises_and_every_request_ends(policy: str, steps: list[tuple[Event, Any]]) -> None:
    control = ControlPlaneManager(policy)
    dispatched: set[str] = set()
    now = 0.0

    def feed(event: Event, at: Any) -> None:
        for action in control.handle(event, at):
            if isinstance(action, SetTimer):
                assert math.isfinite(action.at)
            elif isinstance(action, Reject):
                assert 400 <= action.status < 600
                dispatched.discard(action.request_id)
            elif isinstance(action, Dispatch):
                dispatched.add(action.request_id)
        running = {name for entry in control.ledger for name in entry.running}
        assert running <= dispatched
        assert control.running >= len(running), "batches count, too"

    feed(EngineAdded(EngineSpec("e1", ("m",), 2)), now)
    for event, step in steps:
        # Time may also stand still, jump back, or be no number at all.
        moves = -1e6 < step < 1e6
        now = now + step if moves else now
        feed(event, now if moves else step)
    for name in IDS:
        feed(Cancel(name), now)
    assert control.queued == control.running == 0
    assert control.queued_bytes == 0


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, HUGE, -HUGE])
def test_a_clock_that_shows_no_time_stands_still(now: Any) -> None:
    control = ControlPlaneManager(limits=Limits(queue_timeout_s=5.0))
    control.handle(EngineAdded(EngineSpec("e", ("m",), 1)), now)
    control.handle(Arrival(RequestInfo("a", "m")), 100.0)
    assert control.handle(Arrival(RequestInfo("b", "m")), now) == [SetTimer(105.0)]
    assert [a.code for a in control.handle(Timer(), 105.0) if isinstance(a, Reject)] == [
        "queue_timeout"
    ]


@pytest.mark.parametrize(
    "limits",
    [
        Limits(queue_timeout_s=math.nan),
        Limits(queue_timeout_s=-1.0),
        Limits(queue_timeout_s=math.inf),
        Limits(unavailable_wait_s=math.nan),
        Limits(max_queued_requests=-1),
        Limits(max_retries=-1),
    ],
)
def test_limits_that_make_no_sense_change_nothing(limits: Limits) -> None:
    control = ControlPlaneManager()
    before = control.limits
    assert control.handle(LimitsChanged(limits), 0.0) == []
    assert control.limits is before
    assert control.ignored == 1
