"""What goes wrong in a day, under every policy: each fault has one defined outcome."""

from __future__ import annotations

import pytest

from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    Band,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineSpec,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

EVERY = pytest.mark.parametrize("policy", sorted(POLICIES))


def manager(policy: str, *engines: str, slots: int = 2) -> ControlPlaneManager:
    made = ControlPlaneManager(policy, Limits(queue_timeout_s=60.0))
    for name in engines or ("e",):
        made.handle(EngineAdded(EngineSpec(name, ("m",), slots)), 0.0)
    return made


def request(name: str, tenant: str = "default", band: Band = Band.INTERACTIVE) -> Arrival:
    return Arrival(RequestInfo(name, "m", tenant=tenant, band=band, stream=True, prompt_tokens=50))


def sent(actions: list[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


@EVERY
def test_a_tenant_that_goes_while_its_requests_wait(policy: str) -> None:
    control = manager(policy, slots=1)
    control.handle(TenantsChanged((TenantSpec("gone", 5.0, 10, 5), TenantSpec("stays"))), 0.0)
    control.handle(request("inside", "stays"), 0.0)
    for number in range(3):
        control.handle(request(f"g{number}", "gone"), 1.0)
        control.handle(request(f"s{number}", "stays"), 1.0)
    assert sent(control.handle(TenantsChanged(()), 2.0)) == []
    assert control.queued == 6
    served, running = [], "inside"
    while running:
        now_sent = sent(control.handle(Done(running, 50, 10), 3.0))
        served += now_sent
        running = now_sent[0] if now_sent else ""
    assert sorted(served) == ["g0", "g1", "g2", "s0", "s1", "s2"]


@pytest.mark.parametrize("after", sorted(POLICIES))
@pytest.mark.parametrize("before", sorted(POLICIES))
def test_the_policy_is_switched_under_load(before: str, after: str) -> None:
    control = manager(before, "e1", "e2", slots=3)
    names = [f"r{number}" for number in range(20)]
    running: list[str] = []
    for number, name in enumerate(names):
        actions = control.handle(request(name, f"t{number % 3}", Band(number % 3)), 0.1 * number)
        running += sent(actions)
    control.handle(FirstToken(running[0]), 3.0)
    control.handle(Progress(running[0], 4), 3.5)
    assert control.running == len(running) == 6
    assert sent(control.handle(PolicyChanged(after), 4.0)) == []
    assert (control.queued, control.running) == (14, 6)
    ended = 0
    now = 5.0
    while running:
        name = running.pop(0)
        control.handle(FirstToken(name), now)
        control.handle(Progress(name, 2), now)
        if ended % 4 == 3:
            running += sent(control.handle(Cancel(name), now))
        else:
            running += sent(control.handle(Done(name, 50, 8), now))
        running += sent(control.handle(Timer(), now))
        ended += 1
        now += 1.0
    assert ended == len(names)
    assert control.queued == control.running == 0


@EVERY
def test_an_engine_that_never_answers_holds_its_window_and_no_more(policy: str) -> None:
    control = manager(policy, "mute", "works", slots=2)
    mute: set[str] = set()
    now, served = 0.0, 0
    for number in range(40):
        now += 1.0
        for action in control.handle(request(f"r{number}"), now):
            if isinstance(action, Dispatch) and action.engine == "mute":
                mute.add(action.request_id)
            elif isinstance(action, Dispatch):
                served += 1
                assert not sent(control.handle(Done(action.request_id, 50, 10), now))
        control.handle(Timer(), now)
    assert len(mute) <= 2
    assert served == 40 - len(mute)
    assert control.queued == 0
    # The driver's time limit, or the client's patience, gives its requests up: it then has room.
    for name in sorted(mute):
        failed = Failed(name, "mute", FailureCause.TIMEOUT, retryable=True)
        assert sent(control.handle(failed, now)) == [name], "the other engine serves it"
    assert control.running == len(mute)
    for name in sorted(mute):
        assert any(isinstance(a, Abort) for a in control.handle(Cancel(name), now))
    assert control.running == 0


@EVERY
@pytest.mark.parametrize("abort", [False, True])
def test_an_engine_is_removed_with_requests_inside(policy: str, abort: bool) -> None:
    control = manager(policy, "e1", "e2", slots=2)
    where = {}
    for number in range(6):
        for action in control.handle(request(f"r{number}"), 1.0):
            if isinstance(action, Dispatch):
                where[action.request_id] = action.engine
    inside = sorted(name for name, engine in where.items() if engine == "e1")
    actions = control.handle(EngineRemoved("e1", abort), 2.0)
    assert [a.request_id for a in actions if isinstance(a, Abort)] == (inside if abort else [])
    assert (control.running, control.queued) == (4, 2)
    if abort:
        # Nothing had come yet: they go to the other engine, in front of what came later.
        for name in inside:
            control.handle(Failed(name, "e1", FailureCause.INTERNAL, retryable=True), 3.0)
        assert (control.running, control.queued) == (2, 4)
    else:
        for name in inside:
            assert sent(control.handle(Done(name, 50, 10), 3.0)) == [], "its room is gone"
    assert control.ledger.get("e1") is None
    ended, running = 0, [name for name, engine in where.items() if engine == "e2"]
    while running:
        running += sent(control.handle(Done(running.pop(), 50, 10), 4.0))
        ended += 1
    assert ended == (6 if abort else 4)
    assert control.queued == control.running == 0


@EVERY
def test_the_last_engine_is_removed_with_requests_waiting(policy: str) -> None:
    control = manager(policy, slots=1)
    for number in range(3):
        control.handle(request(f"r{number}"), 1.0)
    actions = control.handle(EngineRemoved("e"), 2.0)
    rejects = [a for a in actions if isinstance(a, Reject)]
    assert [(r.status, r.code) for r in rejects] == [(503, "no_engine_available")] * 2
    assert all(r.retry_after for r in rejects)
    assert control.handle(Done("r0", 50, 10), 3.0) == []
    assert control.queued == control.running == 0


@EVERY
def test_every_event_may_come_twice(policy: str) -> None:
    """Also after its time: a duplicate changes nothing and is counted."""
    control = manager(policy, slots=1)
    control.handle(request("a"), 1.0)
    control.handle(request("b"), 1.0)
    ignored = control.ignored
    life: list[Event] = [FirstToken("a"), Done("a", 50, 10), FirstToken("b"), Cancel("b")]
    for number, event in enumerate(life, 1):
        control.handle(event, 2.0)
        assert control.handle(event, 2.0) == []
        assert control.ignored == ignored + number
    assert control.handle(Failed("a", "e", FailureCause.RESET, retryable=True), 2.0) == []
    assert control.queued == control.running == 0


@EVERY
def test_a_clock_that_steps_back_costs_nobody_anything(policy: str) -> None:
    control = manager(policy, slots=1)
    control.handle(request("a"), 1000.0)
    control.handle(request("b"), 10.0)
    assert not [a for a in control.handle(Timer(), 500.0) if isinstance(a, Reject)]
    assert sent(control.handle(Done("a", 50, 10), 0.0)) == ["b"]
    story = control.explain("b")
    assert story is not None
    assert all(decision["at_s"] >= 0 for decision in story["decisions"])


@EVERY
def test_a_request_that_comes_back_ages_from_then_on(policy: str) -> None:
    """It waited before it was sent and waits again: it rises by one band, not by two."""
    control = manager(policy, "e1", "e2", slots=1)
    for name in ("a", "b"):
        control.handle(request(name), 0.0)
    control.handle(request("r"), 1.0)
    assert sent(control.handle(Done("a", 50, 10), 10.0)) == ["r"]
    engine = next(entry.name for entry in control.ledger if "r" in entry.running)
    control.handle(EngineRemoved(engine), 10.0)
    control.handle(Failed("r", engine, FailureCause.RESET, retryable=True), 11.0)
    assert control.queued == 1
    for now in (32.0, 39.0, 42.0, 65.0):
        control.handle(Timer(), now)
    assert sent(control.handle(Done("b", 50, 10), 66.0)) == ["r"]
