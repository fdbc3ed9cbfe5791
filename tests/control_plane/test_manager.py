"""The state machine, event by event."""

from __future__ import annotations

import pytest

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.events import (
    Abort,
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    EngineSpec,
    EngineState,
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
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager

READY, SUSPECT, DRAINING = EngineState.READY, EngineState.SUSPECT, EngineState.DRAINING


def manager(*specs: EngineSpec, policy: str = "fifo", **limits: float) -> ControlPlaneManager:
    made = ControlPlaneManager(policy, Limits(**limits))  # type: ignore[arg-type]
    for spec in specs:
        made.handle(EngineAdded(spec), 0.0)
    return made


def engine(name: str = "e", window: int = 1, models: tuple[str, ...] = ("m",)) -> EngineSpec:
    return EngineSpec(name, models, window)


def arrival(request_id: str, model: str = "m", **fields: object) -> Arrival:
    return Arrival(RequestInfo(request_id, model, **fields))  # type: ignore[arg-type]


def failed(request_id: str, name: str, *, retryable: bool = True) -> Failed:
    return Failed(request_id, name, FailureCause.RESET, retryable, "broke")


def test_dispatch_at_once_then_done() -> None:
    m = manager(engine())
    assert m.handle(arrival("a"), 1.0) == [Dispatch("a", "e", 1)]
    assert m.handle(FirstToken("a"), 1.1) == []
    assert m.handle(Progress("a", 3), 1.2) == []
    assert m.running == 1
    assert m.handle(Done("a", 5, 7), 2.0) == []
    assert m.running == m.queued == 0
    assert m.explain("a")["state"] == "done"


def test_waits_for_room_in_order_of_arrival() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    assert m.handle(arrival("b"), 1.0) == [SetTimer(121.0)]
    assert m.handle(arrival("c"), 2.0) == []
    assert m.handle(Done("a"), 3.0) == [Dispatch("b", "e", 1)]
    assert m.handle(Done("b"), 4.0) == [Dispatch("c", "e", 1)]


def test_late_binding_takes_whichever_engine_frees_first() -> None:
    m = manager(engine("e1"), engine("e2"))
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    m.handle(arrival("c"), 0.0)
    assert m.handle(Done("b"), 1.0) == [Dispatch("c", "e2", 1)]


def test_a_full_model_does_not_hold_up_another() -> None:
    m = manager(engine("e1", models=("m",)), engine("e2", models=("n",)))
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    assert m.handle(arrival("c", "n"), 0.0) == [Dispatch("c", "e2", 1)]


def test_an_engine_of_two_models_takes_the_oldest() -> None:
    m = manager(engine(models=("m", "n")))
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b", "n"), 1.0)
    m.handle(arrival("c", "m"), 2.0)
    assert m.handle(Done("a"), 3.0) == [Dispatch("b", "e", 1)]


def test_unknown_model() -> None:
    m = manager(engine(models=("b", "a")))
    (action,) = m.handle(arrival("x", "c"), 0.0)
    assert isinstance(action, Reject)
    assert (action.status, action.code) == (404, "model_not_found")
    assert "Known models: a, b." in action.message


def test_no_engine_is_healthy() -> None:
    m = manager(engine())
    m.handle(EngineReport("e", SUSPECT), 0.0)
    (action,) = m.handle(arrival("a"), 0.0)
    assert isinstance(action, Reject)
    assert (action.status, action.code) == (503, "no_engine_available")
    assert action.retry_after
    assert "e is suspect" in action.message
    m.handle(EngineReport("e", READY), 1.0)
    assert m.handle(arrival("b"), 1.0) == [Dispatch("b", "e", 1)]


def test_a_queued_request_outlives_a_suspect_engine() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    m.handle(EngineReport("e", SUSPECT), 1.0)
    assert isinstance(m.handle(failed("a", "e"), 1.0)[0], Reject)
    assert m.queued == 1
    assert m.handle(EngineReport("e", READY), 2.0) == [Dispatch("b", "e", 1)]


def test_queue_caps() -> None:
    m = manager(engine(), max_queued_requests=2, max_queued_bytes=100)
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    (over_bytes,) = m.handle(arrival("c", body_bytes=101), 0.0)
    assert isinstance(over_bytes, Reject)
    assert "100 bytes" in over_bytes.message
    m.handle(arrival("d"), 0.0)
    (over_count,) = m.handle(arrival("e"), 0.0)
    assert isinstance(over_count, Reject)
    assert (over_count.status, over_count.code) == (429, "queue_full")
    assert over_count.retry_after == 30  # nothing has drained yet
    assert m.queued_bytes == 0


def test_retry_after_follows_the_drain_rate() -> None:
    m = manager(engine(window=2), max_queued_requests=10)
    for i in range(100):  # 10 requests/s
        m.handle(arrival(f"w{i}"), i / 10)
        m.handle(Done(f"w{i}"), i / 10)
    for i in range(12):
        m.handle(arrival(f"q{i}"), 10.0)
    (full,) = m.handle(arrival("x"), 10.0)
    assert isinstance(full, Reject)
    assert full.retry_after in (1, 2)


def test_queue_timeout() -> None:
    m = manager(engine(), queue_timeout_s=5.0)
    m.handle(arrival("a"), 0.0)
    assert m.handle(arrival("b"), 1.0) == [SetTimer(6.0)]
    assert m.handle(Timer(), 3.0) == [SetTimer(6.0)]  # too early: armed again
    (action,) = m.handle(Timer(), 6.0)
    assert isinstance(action, Reject)
    assert (action.status, action.code) == (503, "queue_timeout")
    assert m.queued == 0


def test_deadline() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    assert m.handle(arrival("b", deadline=2.0), 1.0) == [SetTimer(2.0)]
    # The slot frees late and before the timer: nobody wants the answer any more.
    (action,) = m.handle(Done("a"), 2.5)
    assert isinstance(action, Reject)
    (passed,) = m.handle(arrival("c", deadline=1.0), 3.0)
    assert isinstance(passed, Reject)
    assert passed.status == 504


def test_retry_goes_to_another_engine_and_keeps_its_place() -> None:
    m = manager(engine("e1"), engine("e2"))
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    m.handle(arrival("c"), 0.0)
    # e1 has room, but it has just failed "a": "a" waits in front of "c" only for a better one.
    actions = m.handle(failed("a", "e1"), 1.0)
    assert actions == [Dispatch("a", "e1", 2)]  # nothing else has room, e1 is still healthy
    m.handle(EngineReport("e1", SUSPECT), 1.0)
    actions = m.handle(failed("a", "e1"), 1.0)
    assert [type(a) for a in actions] == []  # queued: e2 is healthy but full
    assert m.handle(Done("b"), 2.0) == [Dispatch("a", "e2", 3)]


def test_no_retry_without_another_engine_or_after_the_first_byte() -> None:
    m = manager(engine("e1"))
    m.handle(arrival("a"), 0.0)
    (alone,) = m.handle(failed("a", "e1"), 1.0)
    assert alone == Reject("a", 502, "engine_failed", "broke", engine="e1")
    m.handle(EngineAdded(engine("e2")), 1.0)
    m.handle(arrival("b"), 1.0)
    name = m.explain("b")["engine"]
    (started,) = m.handle(failed("b", name, retryable=False), 2.0)
    assert isinstance(started, Reject)
    m.handle(arrival("c"), 2.0)
    name = m.explain("c")["engine"]
    timed_out = Failed("c", name, FailureCause.TIMEOUT, False)
    (late,) = m.handle(timed_out, 3.0)
    assert isinstance(late, Reject)
    assert (late.status, late.code) == (504, "engine_timeout")


def test_retries_are_bounded() -> None:
    m = manager(*(engine(f"e{i}") for i in range(9)), max_retries=2)
    (action,) = m.handle(arrival("a"), 0.0)
    attempts = 1
    while isinstance(action, Dispatch):
        (action,) = m.handle(failed("a", action.engine), 1.0)
        attempts += isinstance(action, Dispatch)
    assert attempts == 3


def test_cancel() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    m.handle(arrival("c"), 0.0)
    assert m.handle(Cancel("b"), 1.0) == []
    assert m.handle(Cancel("a"), 1.0) == [
        Abort("a", "e", "client gone"),
        Dispatch("c", "e", 1),
    ]
    assert m.explain("a")["state"] == m.explain("b")["state"] == "cancelled"


def test_removing_an_engine() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    (orphan,) = m.handle(EngineRemoved("e"), 1.0)
    assert isinstance(orphan, Reject)
    assert (orphan.request_id, orphan.status) == ("b", 503)
    assert m.running == 1  # "a" finishes
    m.handle(Done("a"), 2.0)
    assert m.ledger.get("e") is None
    assert m.ledger.models() == []


def test_removing_an_engine_with_abort() -> None:
    m = manager(engine("e1", 2), engine("e2", 2))
    (first,) = m.handle(arrival("a"), 0.0)
    assert isinstance(first, Dispatch)
    actions = m.handle(EngineRemoved(first.engine, abort=True), 1.0)
    assert actions == [Abort("a", first.engine, "engine removed")]
    (again,) = m.handle(failed("a", first.engine), 1.0)
    assert isinstance(again, Dispatch)
    assert again.engine != first.engine


def test_registering_again_changes_window_and_models() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    m.handle(arrival("b"), 0.0)
    assert m.handle(EngineAdded(engine(window=2)), 1.0) == [Dispatch("b", "e", 1)]
    m.handle(arrival("c"), 1.0)
    (orphan,) = m.handle(EngineAdded(engine(window=2, models=("n",))), 2.0)
    assert isinstance(orphan, Reject)
    assert orphan.request_id == "c"
    m.handle(Done("a"), 3.0)
    assert m.handle(arrival("d", "n"), 3.0) == [Dispatch("d", "e", 1)]


def test_a_smaller_window_drains_first() -> None:
    m = manager(engine(window=3))
    for name in "abc":
        m.handle(arrival(name), 0.0)
    m.handle(EngineAdded(engine(window=1)), 1.0)
    m.handle(arrival("d"), 1.0)
    assert m.handle(Done("a"), 2.0) == []
    assert m.handle(Done("b"), 2.0) == []
    assert m.handle(Done("c"), 2.0) == [Dispatch("d", "e", 1)]


def test_a_draining_engine_gets_nothing_new() -> None:
    m = manager(engine("e1", 8), engine("e2", 8))
    m.handle(EngineReport("e1", DRAINING), 0.0)
    for name in "abcd":
        assert m.handle(arrival(name), 1.0) == [Dispatch(name, "e2", 1)]


@pytest.mark.parametrize("policy", ["fifo", "least_outstanding"])
def test_policy_switch_keeps_order(policy: str) -> None:
    m = manager(engine())
    for name in "abcd":
        m.handle(arrival(name), 0.0)
    assert m.handle(PolicyChanged(policy), 1.0) == []
    assert m.policy.name == policy
    order = []
    running = "a"
    while running:
        actions = m.handle(Done(running), 2.0)
        running = actions[0].request_id if actions else ""  # type: ignore[union-attr]
        order.append(running)
    assert order == ["b", "c", "d", ""]


def test_unknown_policy() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'fifo'.*least_outstanding"):
        ControlPlaneManager("fifa")
    m = manager(engine())
    assert m.handle(PolicyChanged("fifa"), 0.0) == []
    assert m.policy.name == "fifo"
    assert m.ignored == 1


def test_limits_change() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 0.0)
    m.handle(LimitsChanged(Limits(max_queued_requests=0)), 0.0)
    (full,) = m.handle(arrival("b"), 0.0)
    assert isinstance(full, Reject)
    assert full.status == 429


def test_events_that_make_no_sense_change_nothing() -> None:
    m = manager(engine())
    m.handle(arrival("a"), 5.0)
    senseless = [
        arrival("a"),
        FirstToken("x"),
        Progress("x", 1),
        Progress("a", -1),
        Done("x"),
        failed("x", "e"),
        failed("a", "other"),
        Cancel("x"),
        EngineReport("x", READY),
        EngineRemoved("x"),
        EngineAdded(EngineSpec("", ("m",))),
        EngineAdded(EngineSpec("y", ())),
        EngineAdded(EngineSpec("y", ("m",), 0)),
    ]
    for event in senseless:
        assert m.handle(event, 5.0) == []
    assert m.ignored == len(senseless)
    assert m.running == 1
    assert m.handle(Done("a"), 5.0) == []
    assert m.handle(Done("a"), 5.0) == []  # twice


def test_a_clock_that_steps_back() -> None:
    m = manager(engine(), queue_timeout_s=5.0)
    m.handle(arrival("a"), 100.0)
    assert m.handle(arrival("b"), 1.0) == [SetTimer(105.0)]
    assert m.handle(Timer(), 50.0) == [SetTimer(105.0)]


def test_explain_tells_what_it_waited_for() -> None:
    m = manager(engine("e1"), engine("e2"))
    for name in "abc":
        m.handle(arrival(name), 1.0)
    m.handle(Done("a"), 3.0)
    story = m.explain("c")
    assert story is not None
    queued, dispatched = story["decisions"]
    assert queued["what"] == "queued"
    assert [c["engine"] for c in queued["candidates"]] == ["e1", "e2"]
    assert all(c["in_flight"] == c["window"] == 1 for c in queued["candidates"])
    assert dispatched["at_s"] == 2.0
    assert dispatched["policy"] == "fifo"
    assert m.explain("nobody") is None


def test_explain_forgets_the_oldest() -> None:
    m = ControlPlaneManager(remember=2)
    m.handle(EngineAdded(engine()), 0.0)
    for name in "abc":
        m.handle(arrival(name), 0.0)
        m.handle(Done(name), 0.0)
    assert m.explain("a") is None
    assert m.explain("c") is not None
