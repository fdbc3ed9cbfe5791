"""All engines of a model are away: who waits, how long, and what they are told."""

from __future__ import annotations

import pytest

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Dispatch,
    Done,
    EngineAdded,
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
    Reject,
    RequestInfo,
    SetTimer,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

READY, SUSPECT, DOWN = EngineState.READY, EngineState.SUSPECT, EngineState.DOWN
CONNECT = FailureCause.CONNECT
WAIT = 10.0


def manager(policy: str = "fifo", *, up: bool = True, **limits: float) -> ControlPlaneManager:
    """One engine with one slot; ``up``: it has said that it is up."""
    made = ControlPlaneManager(policy, Limits(**limits))  # type: ignore[arg-type]
    made.handle(EngineAdded(EngineSpec("e", ("m",), 1)), 0.0)
    if up:
        made.handle(EngineReport("e", READY), 0.0)
    return made


def arrival(name: str, deadline: float | None = None) -> Arrival:
    return Arrival(RequestInfo(name, "m", deadline=deadline))


def report(state: EngineState, engine: str = "e") -> EngineReport:
    return EngineReport(engine, state)


def rejected(actions: list[Action]) -> dict[str, Reject]:
    return {action.request_id: action for action in actions if isinstance(action, Reject)}


def timers(actions: list[Action]) -> list[float]:
    return [action.at for action in actions if isinstance(action, SetTimer)]


def assert_unavailable(reject: Reject) -> None:
    assert (reject.status, reject.code) == (503, "no_engine_available")
    assert reject.retry_after


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("state", [SUSPECT, DOWN])
def test_a_request_waits_for_an_engine_that_comes_back(policy: str, state: EngineState) -> None:
    m = manager(policy)
    m.handle(report(state), 1.0)
    assert not rejected(m.handle(arrival("a"), 2.0))
    assert m.queued == 1
    assert m.explain("a")["decisions"][0]["why"] == "no engine of this model is up"
    sent = [a for a in m.handle(report(READY), 11.9) if isinstance(a, Dispatch)]
    assert sent == [Dispatch("a", "e", 1)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_it_waits_so_long_and_no_longer(policy: str) -> None:
    m = manager(policy)
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("a"), 2.0)
    assert not rejected(m.handle(Timer(), 11.9))
    refused = rejected(m.handle(Timer(), 12.0))
    assert list(refused) == ["a"]
    assert_unavailable(refused["a"])
    assert "e is suspect" in refused["a"].message
    assert m.queued == 0


def test_the_timer_comes_when_the_wait_is_over() -> None:
    m = manager()
    m.handle(report(SUSPECT), 1.0)
    assert timers(m.handle(arrival("a"), 2.0)) == [11.0], "the outage's own, for those before it"
    assert timers(m.handle(Timer(), 11.0)) == [12.0]


def test_a_deadline_or_the_queue_s_limit_comes_first() -> None:
    m = manager(queue_timeout_s=6.0)
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("deadline", deadline=5.0), 2.0)
    m.handle(arrival("queue"), 2.0)
    assert rejected(m.handle(Timer(), 5.0))["deadline"].code == "queue_timeout"
    assert rejected(m.handle(Timer(), 8.0))["queue"].code == "queue_timeout"


def test_one_that_was_queued_before_waits_from_the_beginning_of_the_outage() -> None:
    m = manager()
    m.handle(arrival("inside"), 0.0)
    m.handle(arrival("a"), 1.0)
    assert timers(m.handle(report(SUSPECT), 50.0)) == [60.0]
    m.handle(arrival("b"), 55.0)
    refused = rejected(m.handle(Timer(), 60.0))
    assert list(refused) == ["a"]
    assert_unavailable(refused["a"])
    assert list(rejected(m.handle(Timer(), 65.0))) == ["b"]


def test_after_a_short_outage_the_queue_s_limit_counts_again() -> None:
    m = manager()
    m.handle(arrival("inside"), 0.0)
    m.handle(arrival("a"), 1.0)
    m.handle(report(SUSPECT), 50.0)
    m.handle(arrival("b"), 51.0)
    m.handle(report(READY), 52.0)
    for now in (60.0, 62.0, 100.0):
        assert not rejected(m.handle(Timer(), now))
    m.handle(report(SUSPECT), 110.0)
    assert list(rejected(m.handle(Timer(), 120.0))) == ["a", "b"]


def test_an_engine_that_never_was_up_is_not_waited_for() -> None:
    m = manager(up=False)
    m.handle(report(SUSPECT), 1.0)
    assert_unavailable(rejected(m.handle(arrival("a"), 2.0))["a"])
    assert m.queued == 0


@pytest.mark.parametrize("event", [FirstToken("a"), Done("a")])
def test_an_engine_that_answered_was_up(event: Event) -> None:
    m = manager(up=False)
    m.handle(arrival("a"), 1.0)
    m.handle(event, 1.0)
    m.handle(report(SUSPECT), 2.0)
    m.handle(arrival("b"), 3.0)
    assert m.queued == 1


def test_draining_engines_are_not_waited_for() -> None:
    m = manager()
    m.handle(report(EngineState.DRAINING), 1.0)
    assert_unavailable(rejected(m.handle(arrival("a"), 2.0))["a"])


def test_beside_a_draining_engine_one_may_come_back() -> None:
    m = manager()
    m.handle(EngineAdded(EngineSpec("leaves", ("m",), 1)), 0.0)
    m.handle(report(EngineState.DRAINING, "leaves"), 1.0)
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("a"), 2.0)
    assert m.queued == 1
    m.handle(EngineRemoved("leaves"), 3.0)
    assert m.queued == 1
    assert list(rejected(m.handle(EngineRemoved("e"), 4.0))) == ["a"]


def test_a_limit_of_zero_waits_for_nobody() -> None:
    m = manager(unavailable_wait_s=0.0)
    m.handle(report(SUSPECT), 1.0)
    assert_unavailable(rejected(m.handle(arrival("a"), 2.0))["a"])


def test_a_new_engine_ends_the_outage() -> None:
    m = manager()
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("a"), 2.0)
    m.handle(arrival("b"), 2.0)
    assert Dispatch("a", "e2", 1) in m.handle(EngineAdded(EngineSpec("e2", ("m",), 1)), 3.0)
    assert not rejected(m.handle(Timer(), 30.0))
    assert m.queued == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_refused_connection_waits_for_the_engine_too(policy: str) -> None:
    m = manager(policy)
    m.handle(arrival("a"), 1.0)
    m.handle(report(SUSPECT), 1.0)
    assert not rejected(m.handle(Failed("a", "e", CONNECT, retryable=True), 1.0))
    assert m.queued == 1
    assert Dispatch("a", "e", 2) in m.handle(report(READY), 3.0)


def test_what_may_have_broken_the_engine_does_not_meet_it_again() -> None:
    m = manager()
    m.handle(arrival("a"), 1.0)
    m.handle(report(SUSPECT), 1.0)
    failed = Failed("a", "e", FailureCause.RESET, retryable=True)
    assert rejected(m.handle(failed, 1.0))["a"].status == 502


def test_other_models_do_not_wait() -> None:
    m = manager()
    m.handle(EngineAdded(EngineSpec("other", ("n",), 1)), 0.0)
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("a"), 2.0)
    assert m.handle(Arrival(RequestInfo("b", "n")), 2.0) == [Dispatch("b", "other", 1)]


def test_an_engine_that_flaps_costs_no_request_its_place() -> None:
    m = manager()
    m.handle(arrival("inside"), 0.0)
    names = [f"r{number}" for number in range(40)]
    for number, name in enumerate(names):
        m.handle(report(SUSPECT if number % 2 else READY), number * 1.0)
        m.handle(arrival(name), number * 1.0)
    m.handle(report(READY), 40.0)
    order: list[str] = []
    running = "inside"
    while running:
        sent = [a.request_id for a in m.handle(Done(running), 41.0) if isinstance(a, Dispatch)]
        running = sent[0] if sent else ""
        order += sent
    assert order == names


@pytest.mark.parametrize("wait", [4.0, 30.0])
def test_a_limit_that_changes_counts_for_who_waits(wait: float) -> None:
    m = manager()
    m.handle(report(SUSPECT), 1.0)
    m.handle(arrival("a"), 2.0)
    m.handle(LimitsChanged(Limits(unavailable_wait_s=wait)), 3.0)
    m.handle(arrival("b"), 3.0)
    ended: dict[str, float] = {}
    for tenth in range(400):
        now = 3.0 + tenth / 10
        ended.update(dict.fromkeys(rejected(m.handle(Timer(), now)), now))
    assert ended["b"] == pytest.approx(3.0 + wait, abs=0.2)
    # What waits already is looked at again when its old limit has come.
    assert ended["a"] == pytest.approx(2.0 + max(wait, WAIT), abs=0.2)
