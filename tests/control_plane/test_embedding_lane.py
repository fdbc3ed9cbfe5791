"""Embedding and rerank calls under the manager: merged, charged, expired, moved, refused."""

from __future__ import annotations

from typing import Any

import pytest

from sage_prefect.control_plane.events import (
    AbortBatch,
    Action,
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    BatchDone,
    BatchFailed,
    BatchPart,
    Cancel,
    Dispatch,
    DispatchBatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineRemoved,
    EngineReport,
    EngineSpec,
    EngineState,
    Failed,
    FailureCause,
    FirstToken,
    Kind,
    Limits,
    PolicyChanged,
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

FAST = EngineProfile(s0=0.004, alpha=4e-6)
SLOW = EngineProfile(s0=0.008, alpha=1.6e-4)
LLM = EngineProfile(c0=0.03, a=6.5e-5, b=2.1e-4, g=1.6e-7)


def engine(name: str = "e", window: int = 1, **fields: Any) -> EngineSpec:
    fields.setdefault("models", ("m",))
    fields.setdefault("profile", FAST)
    fields.setdefault("device", "cuda")
    return EngineSpec(name, max_concurrency=window, **fields)


def manager(*specs: EngineSpec, policy: str = "hybrid", **limits: Any) -> ControlPlaneManager:
    made = ControlPlaneManager(policy, Limits(**limits))
    for spec in specs:
        made.handle(EngineAdded(spec), 0.0)
    return made


def call(
    request_id: str, *inputs: int, kind: Kind = "embedding", form: int | None = 1, **fields: Any
) -> Arrival:
    lengths = inputs or (10,)
    info = RequestInfo(
        request_id,
        "m",
        kind,
        body_bytes=10,
        prompt_tokens=sum(lengths),
        inputs=lengths,
        merge_key=form if kind == "embedding" else None,
        **fields,
    )
    return Arrival(info)


def batch(actions: list[Action]) -> DispatchBatch:
    """The one batch among the actions."""
    (found,) = (action for action in actions if isinstance(action, DispatchBatch))
    return found


def names(found: DispatchBatch) -> list[str]:
    return sorted(part.request_id for part in found.parts)


def rejects(actions: list[Action]) -> list[Reject]:
    return [action for action in actions if isinstance(action, Reject)]


def test_which_policies_merge() -> None:
    for name, policy in POLICIES.items():
        assert policy.merges is issubclass(policy, HybridSchedulingPolicy)
        m = manager(engine(), policy=name)
        (action,) = m.handle(call("a"), 0.0)
        expected = DispatchBatch if policy.merges else Dispatch
        assert isinstance(action, expected), name


def test_alone_at_once_and_together_while_busy() -> None:
    m = manager(engine())
    assert m.handle(call("a", 5, 6), 0.0) == [
        DispatchBatch(1, "e", (BatchPart("a", 1), BatchPart("a", 0)))
    ]
    assert (m.queued, m.running, m.queued_bytes) == (0, 1, 0)
    m.handle(call("b"), 0.0)
    m.handle(call("c"), 0.0)
    assert (m.queued, m.running, m.queued_bytes) == (2, 1, 20)
    assert names(batch(m.handle(BatchDone(1, 11), 0.01))) == ["b", "c"]
    assert (m.queued, m.running) == (0, 2)
    assert m.handle(BatchDone(2, 20), 0.02) == []
    assert (m.queued, m.running) == (0, 0)
    story = m.explain("b")
    assert story is not None
    assert story["state"] == "done"
    assert [note["what"] for note in story["decisions"]] == ["queued", "batched", "done"]


def test_batch_numbers_are_unique_among_models() -> None:
    m = manager(engine("e1", models=("m",)), engine("e2", models=("n",)))
    first = batch(m.handle(call("a"), 0.0))
    second = batch(m.handle(Arrival(RequestInfo("b", "n", "embedding", merge_key=1)), 0.0))
    assert first.batch_id != second.batch_id


def test_an_engine_with_a_batch_inside_is_not_empty() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    entry = m.ledger.get("e")
    assert entry is not None
    assert entry.in_flight == 1
    assert entry.room == 0
    assert m.handle(EngineRemoved("e"), 0.1) == []
    assert m.ledger.get("e") is entry
    m.handle(BatchDone(1), 0.2)
    assert m.ledger.get("e") is None


def test_removal_with_abort_ends_batches_and_their_inputs_go_elsewhere() -> None:
    m = manager(engine("e1"))
    m.handle(call("a"), 0.0)
    m.handle(EngineAdded(engine("e2")), 0.0)
    assert m.handle(EngineRemoved("e1", abort=True), 0.1) == [AbortBatch(1, "e1", "engine removed")]
    failed = BatchFailed(1, "e1", FailureCause.INTERNAL, retryable=True)
    assert batch(m.handle(failed, 0.2)).engine == "e2"
    assert m.ledger.get("e1") is None


def test_a_drained_engine_gets_no_batch_and_a_new_one_does() -> None:
    m = manager(engine("e1"), engine("e2"))
    m.handle(EngineReport("e1", EngineState.DRAINING), 0.0)
    assert batch(m.handle(call("a"), 0.0)).engine == "e2"
    m.handle(call("b"), 0.0)
    assert batch(m.handle(EngineReport("e1", EngineState.READY), 0.1)).engine == "e1"


def test_the_last_engine_goes_and_what_waits_is_refused() -> None:
    m = manager(engine(max_batch_inputs=1))
    m.handle(call("begun", 5, 6), 0.0)
    m.handle(call("waits"), 0.0)
    (refused,) = rejects(m.handle(EngineRemoved("e"), 0.1))
    assert (refused.request_id, refused.status) == ("waits", 503)
    assert refused.retry_after
    # One of its inputs is inside: it is heard of first, then there is no engine for the other.
    (refused,) = rejects(m.handle(BatchDone(1), 0.2))
    assert (refused.request_id, refused.code) == ("begun", "no_engine_available")
    assert m.queued == m.running == m.queued_bytes == 0


def test_cancelled_in_the_queue_and_inside() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    m.handle(call("b"), 0.0)
    assert m.handle(Cancel("b"), 0.1) == []
    assert m.queued == 0
    assert m.handle(Cancel("a"), 0.1) == [AbortBatch(1, "e", "client gone")]
    assert m.running == 0
    assert m.handle(BatchDone(1), 0.2) == []  # too late
    assert m.ignored == 1
    assert batch(m.handle(call("c"), 0.3)).batch_id == 2


def test_a_batch_that_somebody_still_wants_goes_on() -> None:
    m = manager(engine())
    m.handle(call("first"), 0.0)
    m.handle(call("a"), 0.0)
    m.handle(call("b"), 0.0)
    m.handle(BatchDone(1), 0.1)
    assert m.handle(Cancel("a"), 0.2) == []
    assert m.running == 1
    assert m.handle(Cancel("b"), 0.2) == [AbortBatch(2, "e", "client gone")]


def test_caps_of_the_queue_count_all_kinds() -> None:
    m = manager(engine(), max_queued_requests=2, max_queued_bytes=1000)
    for name in "abc":
        m.handle(call(name), 0.0)
    (full,) = rejects(m.handle(call("d"), 0.0))
    assert (full.status, full.code) == (429, "queue_full")
    assert full.retry_after
    m = manager(engine(), max_queued_bytes=15)
    m.handle(call("a"), 0.0)
    m.handle(call("b"), 0.0)
    (full,) = rejects(m.handle(call("c"), 0.0))
    assert "15 bytes" in full.message
    m = manager(engine())
    m.handle(call("a"), 0.0)
    m.handle(TenantsChanged((TenantSpec("t", max_queued=0),)), 0.0)
    (full,) = rejects(m.handle(call("x", tenant="t"), 0.0))
    assert "tenant 't'" in full.message


def test_queue_timeout_and_deadline() -> None:
    m = manager(engine(), queue_timeout_s=5.0)
    m.handle(call("a"), 0.0)
    m.handle(call("b"), 1.0)
    assert SetTimer(2.0) in m.handle(call("c", deadline=2.0), 1.0)
    (late,) = rejects(m.handle(Timer(), 2.0))
    assert (late.request_id, late.status, late.code) == ("c", 503, "queue_timeout")
    assert late.retry_after
    (late,) = rejects(m.handle(Timer(), 6.0))
    assert late.request_id == "b"
    assert (m.queued, m.running) == (0, 1)


def test_what_is_late_joins_no_batch() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    m.handle(call("late", deadline=1.0), 0.0)
    m.handle(call("b"), 0.0)
    actions = m.handle(BatchDone(1), 2.0)  # and no timer has come before
    assert [reject.request_id for reject in rejects(actions)] == ["late"]
    assert names(batch(actions)) == ["b"]


def test_a_long_call_waits_again_between_its_batches() -> None:
    m = manager(engine(max_batch_inputs=2))
    m.handle(call("a", 5, 5, 5), 0.0)
    assert (m.queued, m.running) == (0, 1)
    m.handle(EngineReport("e", EngineState.DRAINING), 0.1)
    m.handle(BatchDone(1), 0.2)
    assert (m.queued, m.running) == (1, 0)
    m.handle(EngineReport("e", EngineState.READY), 0.3)
    assert (m.queued, m.running) == (0, 1)
    m.handle(BatchDone(2), 0.4)
    story = m.explain("a")
    assert story is not None
    assert story["state"] == "done"


def test_an_engine_fault_is_retried_elsewhere_and_ends_as_for_any_request() -> None:
    m = manager(engine("e1"), engine("e2"), engine("e3"), max_retries=1)
    first = batch(m.handle(call("a"), 0.0))
    fault = BatchFailed(first.batch_id, first.engine, FailureCause.RESET, True, message="broke")
    second = batch(m.handle(fault, 0.1))
    assert second.engine != first.engine
    fault = BatchFailed(second.batch_id, second.engine, FailureCause.TIMEOUT, True, message="slow")
    (reply,) = rejects(m.handle(fault, 0.2))  # one retry was allowed
    assert (reply.status, reply.code, reply.message) == (504, "engine_timeout", "slow")
    assert reply.engine == second.engine
    assert m.queued == m.running == 0


def test_no_other_engine_no_retry() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    (reply,) = rejects(m.handle(BatchFailed(1, "e", FailureCause.RESET, True), 0.1))
    assert (reply.status, reply.engine) == (502, "e")


def test_a_bad_input_is_found_by_halving() -> None:
    m = manager(engine())
    m.handle(call("first"), 0.0)
    for name in ("a", "b", "bad", "c"):
        m.handle(call(name), 0.0)
    sent = batch(m.handle(BatchDone(1), 0.1))
    failed: list[Reject] = []
    for _ in range(10):
        if any(part.request_id == "bad" for part in sent.parts):
            event: Any = BatchFailed(sent.batch_id, "e", FailureCause.STATUS, False, bad_input=True)
        else:
            event = BatchDone(sent.batch_id)
        actions = m.handle(event, 0.2)
        failed += rejects(actions)
        if not any(isinstance(action, DispatchBatch) for action in actions):
            break
        sent = batch(actions)
    assert [(reply.request_id, reply.status, reply.code) for reply in failed] == [
        ("bad", 400, "engine_rejected")
    ]
    assert m.queued == m.running == 0


def test_events_of_single_requests_do_not_fit_batched_ones() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    for event in (
        FirstToken("a"),
        Done("a", 1, 1),
        Failed("a", "e", FailureCause.RESET, True),
        BatchFailed(1, "other", FailureCause.RESET, True),
        BatchDone(7),
    ):
        assert m.handle(event, 0.1) == []
    assert m.ignored == 5
    assert m.running == 1


def test_chat_and_embeddings_share_one_window() -> None:
    m = manager(engine(window=2, models=("m", "llm"), driver="openai"))
    (first,) = m.handle(Arrival(RequestInfo("chat", "llm")), 0.0)
    assert isinstance(first, Dispatch)
    assert names(batch(m.handle(call("a"), 0.0))) == ["a"]
    m.handle(call("b"), 0.0)
    m.handle(Arrival(RequestInfo("chat2", "llm")), 0.0)
    assert m.queued == 2
    # Whatever leaves, one call comes in.
    (next_,) = (a for a in m.handle(Done("chat"), 0.1) if not isinstance(a, SetTimer))
    assert isinstance(next_, Dispatch)
    assert next_.request_id == "chat2"
    assert names(batch(m.handle(BatchDone(1), 0.2))) == ["b"]


def test_a_server_that_works_on_one_batch_at_a_time_gets_one_more() -> None:
    m = manager(engine(window=8, driver="sentence-transformers"))
    for number in range(4):
        m.handle(call(f"r{number}"), 0.0)
    assert (m.running, m.queued) == (2, 2)


def test_policies_change_under_load() -> None:
    m = manager(engine(max_batch_inputs=1))
    m.handle(call("begun", 5, 6), 0.0)
    m.handle(call("queued"), 0.0)
    assert m.handle(PolicyChanged("fifo"), 0.1) == []
    assert (m.queued, m.running) == (1, 1)
    # What waits goes by itself; what has begun ends in batches, after it: its turn was over.
    (first,) = (a for a in m.handle(BatchDone(1), 0.2) if not isinstance(a, SetTimer))
    assert first == Dispatch("queued", "e", 1)
    (second,) = (a for a in m.handle(Done("queued"), 0.3) if not isinstance(a, SetTimer))
    assert isinstance(second, DispatchBatch)
    assert names(second) == ["begun"]
    m.handle(call("new"), 0.3)
    m.handle(PolicyChanged("hybrid"), 0.4)
    assert names(batch(m.handle(BatchDone(2), 0.5))) == ["new"]
    m.handle(BatchDone(3), 0.6)
    assert m.queued == m.running == 0


def test_what_failed_by_itself_avoids_that_engine_in_a_batch() -> None:
    m = manager(engine("e1"), engine("e2"), policy="fifo")
    (sent,) = m.handle(call("a"), 0.0)
    assert isinstance(sent, Dispatch)
    m.handle(PolicyChanged("hybrid"), 0.1)
    actions = m.handle(Failed("a", sent.engine, FailureCause.RESET, True), 0.2)
    assert batch(actions).engine != sent.engine


def test_what_has_begun_keeps_its_answers_when_the_policy_changes() -> None:
    m = manager(engine(max_batch_inputs=2))
    m.handle(call("a", 5, 5, 5), 0.0)
    m.handle(EngineReport("e", EngineState.DRAINING), 0.1)
    m.handle(BatchDone(1), 0.2)
    assert m.queued == 1
    m.handle(PolicyChanged("fifo"), 0.3)
    assert m.queued == 1
    rest = batch(m.handle(EngineReport("e", EngineState.READY), 0.4))
    assert len(rest.parts) == 1
    m.handle(BatchDone(rest.batch_id), 0.5)
    assert m.queued == m.running == 0


def test_one_currency_for_chat_and_embeddings() -> None:
    """Embeddings that a tenant gets meanwhile set its chat back behind another's."""
    m = manager(
        engine("emb", price=2.0), EngineSpec("llm", ("llm",), 1, profile=LLM), policy="hybrid"
    )
    m.handle(Arrival(RequestInfo("busy", "llm", prompt_tokens=100)), 0.0)
    m.handle(Arrival(RequestInfo("h", "llm", tenant="heavy", prompt_tokens=100)), 1.0)
    m.handle(Arrival(RequestInfo("l", "llm", tenant="light", prompt_tokens=100)), 1.1)
    policy: Any = m.policy
    account = policy._accounts[Band.STANDARD].of("heavy")
    before = account.virtual
    m.handle(call("e", 1000, tenant="heavy", band=Band.STANDARD), 1.2)
    # 4 ms and 4 us a token, at twice the price.
    assert account.virtual - before == pytest.approx(2 * (0.004 + 0.004))
    m.handle(BatchDone(1), 1.3)
    actions = m.handle(Done("busy", 1, 1), 2.0)
    assert [a.request_id for a in actions if isinstance(a, Dispatch)] == ["l"]


def test_what_was_not_served_is_given_back() -> None:
    m = manager(engine())
    policy: Any = m.policy
    account = policy._accounts[Band.STANDARD].of("default")
    m.handle(call("a"), 0.0)
    assert account.virtual > 0
    m.handle(BatchFailed(1, "e", FailureCause.RESET, True), 0.1)
    assert account.virtual == pytest.approx(0.0)
    m.handle(call("b"), 0.2)
    m.handle(Cancel("b"), 0.2)
    assert account.virtual == pytest.approx(0.0)


def test_a_noisy_tenant_does_not_hold_up_a_quiet_one() -> None:
    m = manager(engine(max_batch_tokens=1000))
    m.handle(call("busy"), 0.0)
    for number in range(50):
        m.handle(call(f"n{number}", 1000, tenant="noisy", band=Band.BATCH), 0.0)
    m.handle(call("q", 1000, tenant="quiet", band=Band.BATCH), 0.001)
    order = []
    for number in range(1, 52):
        actions = m.handle(BatchDone(number), 0.01 * number)
        order += names(batch(actions)) if number < 52 and m.running else []
    assert order.index("q") < 5


def test_a_tenant_has_only_so_many_calls_placed_at_once() -> None:
    m = manager(engine(window=8))
    m.handle(TenantsChanged((TenantSpec("t", max_running=2),)), 0.0)
    for number in range(4):
        band = Band.BATCH if number < 3 else Band.INTERACTIVE
        m.handle(call(f"t{number}", tenant="t", band=band), 0.0)
    m.handle(call("other"), 0.0)
    assert (m.running, m.queued) == (3, 2)
    story = m.explain("t2")
    assert story is not None
    assert story["decisions"][0]["what"] == "held back"
    assert names(batch(m.handle(BatchDone(1), 0.1))) == ["t3"]  # the more urgent one
    m.handle(Cancel("t2"), 0.2)
    assert not any(isinstance(a, DispatchBatch) for a in m.handle(BatchDone(2), 0.3))
    for number in range(4, 7):
        m.handle(call(f"t{number}", tenant="t"), 0.4)
    assert m.queued == 2
    m.handle(TenantsChanged(()), 0.5)
    assert m.queued == 0
    m.handle(PolicyChanged("fifo"), 0.6)


def test_what_is_held_back_is_given_up_in_time_and_moves_with_the_policy() -> None:
    m = manager(engine(window=8))
    m.handle(TenantsChanged((TenantSpec("t", max_running=0),)), 0.0)
    m.handle(call("late", tenant="t", deadline=1.0), 0.0)
    m.handle(call("moves", tenant="t"), 0.0)
    assert [reject.request_id for reject in rejects(m.handle(Timer(), 1.0))] == ["late"]
    m.handle(PolicyChanged("fifo"), 2.0)
    assert m.queued == 1, "the limit moves, too"
    actions = m.handle(TenantsChanged(()), 3.0)
    assert [a.request_id for a in actions if isinstance(a, Dispatch)] == ["moves"]


def test_age_moves_a_request_up() -> None:
    m = manager(engine(max_batch_tokens=10))
    m.handle(BandsChanged((BandSpec(Band.BATCH, age_limit_s=3.0),)), 0.0)
    m.handle(call("busy"), 0.0)
    actions = m.handle(call("old", band=Band.BATCH), 0.0)
    assert SetTimer(3.0) in actions
    for number in range(5):
        m.handle(call(f"s{number}", band=Band.STANDARD), 1.0 + number / 10)
    m.handle(Timer(), 3.0)
    story = m.explain("old")
    assert story is not None
    assert story["band"] == "batch"
    assert any(note["what"] == "moved up" for note in story["decisions"])
    order = []
    for number in range(1, 7):
        order += names(batch(m.handle(BatchDone(number), 4.0)))
    assert order[0] == "old"


def test_what_would_wait_too_long_is_told_so() -> None:
    m = manager(engine(profile=SLOW, device="cpu", max_batch_tokens=1000))
    m.handle(BandsChanged((BandSpec(Band.INTERACTIVE, ttft_slo_s=1.0, reject_share=0.3),)), 0.0)
    refused: list[Reject] = []
    for number in range(40):
        now = 0.05 * number
        arrival = call(f"r{number}", 500, band=Band.INTERACTIVE)
        refused += rejects(m.handle(arrival, now))
    assert refused
    assert {(reject.status, reject.code) for reject in refused} == {(429, "overloaded")}
    assert all(reject.retry_after for reject in refused)
    assert m.queued < 20


def test_an_embedding_engine_beside_a_busy_llm_comes_last() -> None:
    """By tokens per second the GPU would be first; its LLM neighbour needs it."""
    m = manager(
        engine("gpu-emb", accelerator="gpu0", price=1.0),
        engine("gpu-emb-2", accelerator="gpu1", price=3.0),
        EngineSpec("llm", ("llm",), 64, profile=LLM, device="cuda", accelerator="gpu0"),
    )
    assert batch(m.handle(call("a"), 0.0)).engine == "gpu-emb"
    m.handle(BatchDone(1), 0.1)
    for number in range(60):
        chat = RequestInfo(f"c{number}", "llm", stream=True, prompt_tokens=800, tpot_slo_s=0.08)
        m.handle(Arrival(chat), 0.2)
        m.handle(FirstToken(f"c{number}"), 0.2)
    assert batch(m.handle(call("b"), 10.0)).engine == "gpu-emb-2"


def test_work_waits_for_cpus_that_are_soon_enough_rather_than_crowd_a_gpu() -> None:
    m = manager(
        engine("gpu", accelerator="gpu0"),
        engine("cpu", device="cpu", profile=SLOW),
        EngineSpec("llm", ("llm",), 64, profile=LLM, device="cuda", accelerator="gpu0"),
    )
    for number in range(60):
        chat = RequestInfo(f"c{number}", "llm", stream=True, prompt_tokens=800, tpot_slo_s=0.08)
        m.handle(Arrival(chat), 0.0)
        m.handle(FirstToken(f"c{number}"), 0.0)
    slack = {"ttft_slo_s": 10.0, "band": Band.STANDARD}
    assert batch(m.handle(call("a", 500, **slack), 10.0)).engine == "cpu"
    actions = m.handle(call("b", 500, **slack), 10.0)
    assert not any(isinstance(action, DispatchBatch) for action in actions)
    assert m._lane.wake_at() == pytest.approx(10.25)
    # One in a hurry takes the GPU all the same.
    assert batch(m.handle(call("c", 500, ttft_slo_s=0.1), 10.0)).engine == "gpu"


def test_a_rerank_call_goes_whole() -> None:
    m = manager(engine(max_batch_tokens=50))
    found = batch(m.handle(call("r", 40, 40, 40, kind="rerank"), 0.0))
    assert found.parts == (BatchPart("r", 0),)
    m.handle(BatchDone(found.batch_id), 0.1)
    assert m.running == 0


def test_an_idle_model_is_forgotten() -> None:
    m = manager(engine())
    m.handle(call("a"), 0.0)
    m.handle(BatchDone(1), 0.1)
    m.handle(EngineRemoved("e"), 0.2)
    lane: Any = m._lane
    assert not lane._executors._executors
    assert not lane._executors.of_engine


def test_a_cold_engine_is_waited_for() -> None:
    m = manager(engine(cold=True))
    for number in range(5):
        actions = m.handle(call(f"r{number}", ttft_slo_s=0.5), 1.0 * number)
        assert not rejects(actions)
    assert m.queued == 5
    assert names(batch(m.handle(EngineReport("e", EngineState.WARMING), 6.0))) == [
        f"r{number}" for number in range(5)
    ]
