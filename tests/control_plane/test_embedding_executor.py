"""EmbeddingExecutor: how batches are formed and placed, what failures lead to, and the books."""

from __future__ import annotations

import math
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage_prefect.control_plane.event_bounds import MAX_TOKENS
from sage_prefect.control_plane.events import (
    Band,
    BatchPart,
    EngineProfile,
    EngineSpec,
    EngineState,
    Kind,
    RequestInfo,
)
from sage_prefect.control_plane.executors.call_budget import most_tokens
from sage_prefect.control_plane.executors.embedding_executor import (
    MAX_ATTEMPTS,
    MAX_FORMS,
    EmbeddingExecutor,
)
from sage_prefect.control_plane.executors.length_buckets import InputState, bucket_of
from sage_prefect.control_plane.executors.open_batches import BatchOutcome
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

FAST = EngineProfile(s0=0.004, alpha=4e-6)
SLOW = EngineProfile(s0=0.010, alpha=1e-4)

ABSURD = (
    EngineProfile(s0=1e308, alpha=1e300),
    EngineProfile(s0=0.0, alpha=1e300),
    EngineProfile(s0=1.0, alpha=5e-324),
)


class Bench:
    """An executor and the numbers that the manager would give it."""

    def __init__(self) -> None:
        self.executor = EmbeddingExecutor("e5")
        self.seq = count()

    def engine(
        self,
        name: str,
        *,
        device: str = "cuda",
        profile: EngineProfile | None = FAST,
        budget: int | None = None,
        padded: bool = False,
        slots: int = 1,
        price: float = 1.0,
        state: EngineState = EngineState.READY,
        inputs: int | None = None,
    ) -> None:
        spec = EngineSpec(
            name, ("e5",), device=device, profile=profile, max_batch_tokens=budget,
            padded=padded, price=price, max_batch_inputs=inputs,
        )  # fmt: skip
        self.executor.engine_changed(name, spec, state, slots)

    def add(
        self,
        request_id: str,
        *inputs: int,
        band: Band = Band.STANDARD,
        deadline: float = math.inf,
        keys: tuple[int, ...] = (),
        kind: Kind = "embedding",
        virtual: float = 0.0,
        form: int | None = 1,
    ) -> None:
        merge_key = form if kind == "embedding" else None
        info = RequestInfo(
            request_id, "e5", kind=kind, inputs=inputs, input_keys=keys, merge_key=merge_key
        )
        request = ScheduledRequest(info, next(self.seq), 0.0)
        self.executor.add(request, band, deadline, virtual)

    def send(self, now: float = 0.0) -> tuple[int, str, list[tuple[str, int]]]:
        batch = self.executor.next_batch(now)
        assert batch is not None
        return batch[0], batch[1], [(part.request_id, part.index) for part in batch[2]]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- forming ------------------------------------------------------------------------------


def test_a_request_alone_goes_at_once_and_is_done(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10, 20)
    batch_id, engine, parts = bench.send()
    assert engine == "a"
    assert sorted(parts) == [("r", 0), ("r", 1)]
    assert bench.executor.next_batch(0.0) is None
    assert bench.executor.batch_done(batch_id, 0.01, 30) == ["r"]
    assert len(bench.executor) == 0


def test_without_inputs_the_prompt_is_the_input(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r")
    assert bench.send()[2] == [("r", 0)]


def test_what_arrives_while_the_engine_is_busy_goes_together(bench: Bench) -> None:
    bench.engine("a")
    bench.add("first", 10)
    batch_id, *_ = bench.send()
    for number in range(5):
        bench.add(f"r{number}", 10)
        assert bench.executor.next_batch(0.0) is None
    bench.executor.batch_done(batch_id, 0.01)
    assert len(bench.send(0.01)[2]) == 5


def test_ragged_engines_count_the_sum_and_padded_ones_the_longest(bench: Bench) -> None:
    for padded, expected in ((False, 4), (True, 3)):
        bench = Bench()
        bench.engine("a", budget=100, padded=padded)
        for number, tokens in enumerate((30, 25, 20, 20)):
            bench.add(f"r{number}", tokens)
        # Sum: 95 for all four; padded: 30 * 3 = 90 for three.
        assert len(bench.send()[2]) == expected


def test_padded_batches_are_of_about_one_length(bench: Bench) -> None:
    bench.engine("a", padded=True)
    bench.add("long", 400)
    bench.add("short", 10)
    bench.add("half", 201)
    assert sorted(bench.send()[2]) == [("half", 0), ("long", 0)]


def test_ragged_batches_mix_lengths(bench: Bench) -> None:
    bench.engine("a")
    bench.add("long", 400)
    bench.add("short", 10)
    assert len(bench.send()[2]) == 2


def test_an_input_above_the_budget_goes_alone(bench: Bench) -> None:
    bench.engine("a", budget=64)
    bench.add("huge", 10**12)
    bench.add("small", 5)
    assert bench.send()[2] == [("huge", 0)]


def test_a_misfit_does_not_keep_smaller_ones_out(bench: Bench) -> None:
    bench.engine("a", budget=100)
    for name, tokens in (("x", 60), ("y", 60), ("z", 40)):
        bench.add(name, tokens)
    assert bench.send()[2] == [("x", 0), ("z", 0)]


def test_order_is_band_then_deadline_then_virtual_time_then_arrival(bench: Bench) -> None:
    bench.engine("a", budget=10, slots=9)
    bench.add("fifth", 10)
    bench.add("sixth", 10)
    bench.add("fourth", 10, virtual=-1.0)
    bench.add("third", 10, deadline=90.0)
    bench.add("second", 10, band=Band.INTERACTIVE)
    bench.add("first", 10, band=Band.CRITICAL)
    sent = [bench.send()[2][0][0] for _ in range(6)]
    assert sent == ["first", "second", "third", "fourth", "fifth", "sixth"]


def test_other_bands_leave_a_quarter_while_interactive_waits(bench: Bench) -> None:
    bench.engine("a", budget=400, padded=True)
    bench.add("query", 20, band=Band.INTERACTIVE)
    bench.add("page", 300, band=Band.INTERACTIVE)  # not of this length: it waits for the next call
    bench.add("ingest", *[20] * 40, band=Band.BATCH)
    assert len(bench.send()[2]) == 15
    bench.executor.batch_done(1, 0.01)
    assert bench.send(0.01)[2] == [("page", 0)]
    bench.executor.batch_done(2, 0.02)
    assert len(bench.send(0.02)[2]) == 20


def test_critical_leaves_room_for_interactive(bench: Bench) -> None:
    bench.engine("a", budget=100)
    bench.add("critical", *[10] * 20, band=Band.CRITICAL)
    bench.add("query", 10, band=Band.INTERACTIVE)
    parts = bench.send()[2]
    assert ("query", 0) in parts
    assert len(parts) == 10


def test_buckets_are_half_octaves() -> None:
    assert [bucket_of(tokens) for tokens in (1, 16, 17, 22, 23, 32, 33, 512, MAX_TOKENS)] == [
        8, 8, 9, 9, 10, 10, 11, 18, 64,
    ]  # fmt: skip
    for tokens in range(17, 5000):
        k = bucket_of(tokens)
        assert 2 ** ((k - 1) / 2) < tokens <= 2 ** (k / 2) + 1e-9


def test_what_ends_leaves_no_cycle(bench: Bench) -> None:
    """Cycles among 1,000,000 inputs made the collector stop a decision for 0.2 s."""
    bench.engine("a", slots=3)
    requests, calls = [], []
    for name in ("done", "failed", "removed"):
        bench.add(name, 10)
        requests.append(bench.executor._ledger.requests[name])
        calls.append(bench.send()[0])
    assert all(request.inputs for request in requests)
    bench.executor.batch_done(calls[0], 0.0)
    bench.executor.batch_failed(calls[1], 0.0, False, False)
    bench.executor.remove("removed")
    assert not any(request.inputs for request in requests)


def test_equal_inputs_are_sent_once(bench: Bench) -> None:
    bench.engine("a", budget=20)
    bench.add("r", 10, 10, keys=(7, 7))
    bench.add("s", 10, 10, keys=(8, 7))
    batch = bench.executor.next_batch(0.0)
    assert batch is not None
    assert sorted(batch[2], key=lambda part: len(part.copies)) == [
        BatchPart("s", 0),
        BatchPart("r", 1, (("r", 0), ("s", 1))),
    ]
    assert sorted(bench.executor.batch_done(batch[0], 0.01)) == ["r", "s"]


def test_equals_join_a_full_batch(bench: Bench) -> None:
    bench.engine("a", budget=20)
    bench.add("r", 10, 10, 10, keys=(7, 8, 7))
    batch = bench.executor.next_batch(0.0)
    assert batch is not None
    assert batch[2] == (BatchPart("r", 2, (("r", 0),)), BatchPart("r", 1))


def test_keys_that_do_not_match_the_inputs_are_not_used(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10, 10, keys=(7,))
    assert len(bench.send()[2]) == 2


def test_a_big_request_is_split_over_calls_and_engines(bench: Bench) -> None:
    bench.engine("a", budget=100)
    bench.engine("b", budget=100)
    bench.add("big", *[10] * 35)
    (one, a, first), (two, b, second) = bench.send(), bench.send()
    assert {a, b} == {"a", "b"}
    assert len(first) == len(second) == 10
    assert bench.executor.batch_done(two, 0.01) == []
    assert bench.executor.batch_done(one, 0.01) == []
    three, four = bench.send(0.01), bench.send(0.01)
    assert len(three[2]) + len(four[2]) == 15
    assert bench.executor.batch_done(three[0], 0.02) == []
    assert bench.executor.batch_done(four[0], 0.02) == ["big"]
    assert not set(first) & set(second)


def test_a_rerank_call_keeps_to_itself(bench: Bench) -> None:
    bench.engine("a", slots=4, budget=1000)
    bench.add("e", 50)
    bench.add("r", 100, 90, 10, kind="rerank")
    bench.add("s", 100, kind="rerank")
    bench.add("f", 50)
    sent = [{name for name, _ in bench.send()[2]} for _ in range(3)]
    assert sorted(map(sorted, sent)) == [["e", "f"], ["r"], ["s"]]


def test_a_call_without_merge_key_stays_whole(bench: Bench) -> None:
    bench.engine("a", slots=2, budget=100)
    bench.add("r", 80, 70, 60, kind="rerank")
    bench.add("odd", 80, 70, form=None)
    assert [bench.send()[2] for _ in range(2)] == [[("r", 0)], [("odd", 0)]]


def test_unlike_calls_share_no_batch(bench: Bench) -> None:
    bench.engine("a", slots=8)
    for number in range(6):
        bench.add(f"r{number}", 10, form=number % 2)
    sent = [{name for name, _ in bench.send()[2]} for _ in range(2)]
    assert sorted(map(sorted, sent)) == [["r0", "r2", "r4"], ["r1", "r3", "r5"]]


def test_forms_beyond_a_number_go_alone(bench: Bench) -> None:
    """A client that makes each of its calls unlike the others must not make decisions slow."""
    for number in range(MAX_FORMS + 5):
        bench.add(f"r{number}", 10, form=number)
    shelves = list(bench.executor._waiting.shelves())
    assert len(shelves) == MAX_FORMS + 1
    bench.engine("a", slots=100)
    assert sorted(bench.send()[2][0][0] for _ in range(MAX_FORMS + 5)) == sorted(
        f"r{number}" for number in range(MAX_FORMS + 5)
    )


def test_a_call_holds_as_many_inputs_as_its_engine_takes(bench: Bench) -> None:
    bench.engine("a", slots=3, inputs=4)
    bench.add("r", *[1] * 9)
    assert [len(bench.send()[2]) for _ in range(3)] == [4, 4, 1]


def test_a_tenant_ahead_of_its_share_stands_back(bench: Bench) -> None:
    bench.engine("a", slots=2, budget=10)
    bench.add("noisy", 10, deadline=5.0, virtual=3.0)
    bench.add("quiet", 10, deadline=7.0)
    assert [bench.send()[2][0][0] for _ in range(2)] == ["quiet", "noisy"]


# -- placing ------------------------------------------------------------------------------


def test_a_cpu_goes_first_while_it_is_in_time(bench: Bench) -> None:
    bench.engine("gpu")
    bench.engine("cpu", device="cpu", profile=SLOW)
    bench.add("r", 100, deadline=0.1)  # 20 ms on the CPU
    assert bench.send()[1] == "cpu"


def test_what_a_cpu_would_finish_late_spills_to_a_gpu(bench: Bench) -> None:
    bench.engine("gpu")
    bench.engine("cpu", device="cpu", profile=SLOW)
    bench.add("r", 400, deadline=0.07)  # 50 ms on the CPU, over 0.7 of the slack
    assert bench.send()[1] == "gpu"


def test_a_big_request_spills_though_its_first_call_is_in_time(bench: Bench) -> None:
    bench.engine("gpu", budget=2000)
    bench.engine("cpu", device="cpu", profile=SLOW, budget=2000)
    bench.add("big", *[100] * 200, deadline=1.0)  # 2 s on the CPU alone
    assert [bench.send()[1], bench.send()[1]] == ["gpu", "cpu"]


def test_a_backlog_is_spread_over_the_free_engines_by_their_speed(bench: Bench) -> None:
    bench.engine("gpu")
    bench.engine("cpu", device="cpu", profile=EngineProfile(s0=0.001, alpha=1.2e-5))
    bench.add("r", *[10] * 800)
    calls = dict(bench.send()[1:] for _ in range(2))
    assert len(calls["cpu"]) == 200
    assert len(calls["gpu"]) == 600


def test_a_call_holds_a_token_at_least(bench: Bench) -> None:
    bench.engine("a", profile=EngineProfile(s0=0.0, alpha=1e300))
    bench.add("query", 10**9, band=Band.INTERACTIVE, deadline=0.1)
    assert bench.send()[2] == [("query", 0)]


def test_urgent_work_fills_a_call_that_others_may_not(bench: Bench) -> None:
    """Short calls help who arrives later; who waits already is helped by the best rate."""
    bench.engine("a", profile=SLOW, budget=8192)
    bench.add("ingest", *[100] * 40, band=Band.BATCH)
    for number in range(40):
        bench.add(f"query{number}", 100, band=Band.INTERACTIVE, deadline=0.1)
    # Half of 0.1 s holds 400 tokens; the first of the queries is late even if sent alone at 0.1 s.
    parts = bench.send(0.1)[2]
    assert sum(name.startswith("query") for name, _ in parts) == 40
    assert len(parts) == 40


def test_without_deadline_every_free_engine_works(bench: Bench) -> None:
    bench.engine("gpu", budget=10)
    bench.engine("cpu", device="cpu", profile=SLOW, budget=10)
    bench.add("r", 10, 10)
    assert [bench.send()[1], bench.send()[1]] == ["cpu", "gpu"]


def test_engines_without_price_go_before_cpus(bench: Bench) -> None:
    bench.engine("cpu", device="cpu")
    bench.engine("idle-gpu", price=0.0)
    bench.add("r", 10)
    assert bench.send()[1] == "idle-gpu"


def test_the_cheaper_gpu_goes_first_while_it_is_in_time(bench: Bench) -> None:
    bench.engine("dear", price=4.0)
    bench.engine("cheap", profile=EngineProfile(s0=0.008, alpha=8e-6))
    bench.add("r", 10, deadline=1.0)
    assert bench.send()[1] == "cheap"


def late_query(bench: Bench) -> None:
    """A query that only the GPU, which is busy for some milliseconds, can answer in time."""
    bench.engine("gpu")
    bench.engine("cpu", device="cpu", profile=EngineProfile(s0=0.2, alpha=1e-4))
    bench.add("query", 10, band=Band.INTERACTIVE, deadline=0.03)
    assert bench.send()[1] == "gpu"
    bench.add("next", 10, band=Band.INTERACTIVE, deadline=0.031)
    assert bench.executor.next_batch(0.001) is None


def test_a_late_request_waits_for_the_fast_engine_and_others_pass_it(bench: Bench) -> None:
    late_query(bench)
    bench.add("ingest", 10, band=Band.BATCH)
    assert bench.send(0.001)[1:] == ("cpu", [("ingest", 0)])
    bench.executor.batch_done(1, 0.005)
    assert bench.send(0.005)[1:] == ("gpu", [("next", 0)])


def test_what_waits_for_a_fast_engine_joins_no_other_batch(bench: Bench) -> None:
    bench.engine("gpu", budget=64)
    bench.engine("cpu", device="cpu", profile=EngineProfile(s0=0.2, alpha=1e-4))
    bench.add("first", 10, deadline=0.03)
    assert bench.send()[1] == "gpu"
    bench.add("late", 10, deadline=0.031)
    bench.add("patient", 300)
    assert bench.send(0.001)[1:] == ("cpu", [("patient", 0)])


def test_an_engine_that_failed_it_is_not_waited_for(bench: Bench) -> None:
    bench.engine("gpu")
    bench.engine("cpu", device="cpu", profile=EngineProfile(s0=0.2, alpha=1e-4))
    bench.add("query", 10, deadline=0.03)
    batch_id, engine, _ = bench.send()
    assert engine == "gpu"
    bench.executor.batch_failed(batch_id, 0.001, True, False)
    bench.add("other", 10, deadline=0.02)
    assert bench.send(0.001)[1:] == ("gpu", [("other", 0)])
    assert bench.send(0.001)[1:] == ("cpu", [("query", 0)])


def test_an_engine_that_hangs_is_not_waited_for(bench: Bench) -> None:
    late_query(bench)
    wake_at = bench.executor.wake_at
    assert bench.executor.next_batch(wake_at - 0.001) is None
    assert wake_at == pytest.approx(0.2, abs=0.01)  # by then it is as late as the CPU is slow
    assert bench.send(wake_at + 0.001)[1:] == ("cpu", [("next", 0)])
    assert bench.executor.wake_at == math.inf


def test_calls_stay_short_beside_interactive_requests(bench: Bench) -> None:
    bench.engine("cpu", device="cpu", profile=SLOW, budget=8192)
    bench.add("query", 10, band=Band.INTERACTIVE, deadline=0.4)
    bench.add("ingest", *[100] * 100, band=Band.BATCH)
    sent = len(bench.send()[2])
    # Half of 0.4 s holds 1,900 tokens; other bands get all of it, as no query is left waiting.
    assert 15 <= sent <= 20
    bench.executor.batch_done(1, 0.2)
    assert len(bench.send(100.0)[2]) > 60  # nobody interactive for a minute


def test_predictions_follow_what_engines_do() -> None:
    bench = Bench()
    bench.engine("a", profile=EngineProfile(s0=0.010, alpha=2e-5))
    now = 0.0
    for number in range(200):
        tokens = 50 + 37 * number % 1000
        bench.add(f"r{number}", tokens)
        batch_id, *_ = bench.send(now)
        now += 0.005 + 6e-5 * tokens
        bench.executor.batch_done(batch_id, now, tokens)
    cost = bench.executor._pool["a"].cost
    assert cost.alpha == pytest.approx(6e-5, rel=0.05)
    assert cost.s0 == pytest.approx(0.005, rel=0.3)


def test_calls_inside_one_engine_wait_for_each_other(bench: Bench) -> None:
    bench.engine("a", slots=2, budget=1000, profile=EngineProfile(s0=0.010, alpha=1e-5))
    engine = bench.executor._pool["a"]
    now = 0.0
    for number in range(40):
        bench.add(f"r{number}", 1000, 1000)
        first, second = bench.send(now)[0], bench.send(now)[0]
        assert engine.wait_s(now) == pytest.approx(0.040)
        bench.executor.batch_done(first, now + 0.020, 1000)
        assert engine.wait_s(now + 0.020) == pytest.approx(0.020)
        now += 0.040
        bench.executor.batch_done(second, now, 1000)
        assert engine.wait_s(now) == 0.0


def test_predictions_stay_within_four_times_the_profile() -> None:
    for seconds in (1e-9, 100.0, math.nan, math.inf, -1.0):
        bench = Bench()
        bench.engine("a")
        now = 0.0
        for number in range(50):
            bench.add(f"r{number}", 100)
            batch_id, *_ = bench.send(0.0 if now != now else now)
            now += seconds
            bench.executor.batch_done(batch_id, now, 100)
        cost = bench.executor._pool["a"].cost
        assert FAST.s0 / 4 <= cost.s0 <= FAST.s0 * 4
        assert FAST.alpha / 4 <= cost.alpha <= FAST.alpha * 4


def test_token_counts_correct_the_estimates() -> None:
    bench = Bench()
    bench.engine("a", budget=1000)
    for number in range(200):
        bench.add(f"r{number}", 100)
        batch_id, *_ = bench.send(float(number))
        bench.executor.batch_done(batch_id, number + 0.004 + 200 * 4e-6, 200)
    cost = bench.executor._pool["a"].cost
    assert cost.call_s(200) == pytest.approx(0.0048, rel=0.05)
    bench.add("many", *[100] * 20)
    assert len(bench.send(300.0)[2]) == 5  # 1,000 tokens as the engine counts them


def test_engines_that_do_not_serve_get_nothing(bench: Bench) -> None:
    for state in (EngineState.COLD, EngineState.SUSPECT, EngineState.DRAINING, EngineState.DOWN):
        bench.engine("a", state=state)
        bench.add(state.value, 10)
        assert bench.executor.next_batch(0.0) is None
    bench.engine("a", state=EngineState.WARMING)
    assert len(bench.send()[2]) == 4


def test_a_removed_engine_finishes_what_it_has(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10)
    batch_id, *_ = bench.send()
    bench.executor.engine_gone("a")
    bench.executor.engine_gone("never there")
    bench.add("s", 10)
    assert bench.executor.next_batch(0.0) is None
    assert bench.executor.batches_in("a") == (batch_id,)
    assert bench.executor.batch_done(batch_id, 0.01) == ["r"]
    assert bench.executor.batches_in("a") == ()
    assert bench.executor.next_batch(0.01) is None


# -- failures -----------------------------------------------------------------------------


def isolate(bench: Bench, bad: set[tuple[str, int]]) -> tuple[list[str], list[str], int]:
    """Run until nothing is left: (failed, finished, calls)."""
    failed: list[str] = []
    finished: list[str] = []
    calls = 0
    while batch := bench.executor.next_batch(float(calls)):
        calls += 1
        members = {
            place for part in batch[2] for place in ((part.request_id, part.index), *part.copies)
        }
        if members & bad:
            failed += bench.executor.batch_failed(batch[0], float(calls), False, True).failed
        else:
            finished += bench.executor.batch_done(batch[0], float(calls))
    return failed, finished, calls


def test_a_bad_input_is_isolated_by_halving(bench: Bench) -> None:
    bench.engine("a")
    for number in range(64):
        bench.add(f"r{number}", 10)
    failed, finished, calls = isolate(bench, {("r37", 0)})
    assert failed == ["r37"]
    assert len(finished) == 63
    assert calls == 13  # the batch, and two halves at each of six levels
    assert bench.executor.counts[InputState.FAILED] == 1


def test_two_bad_inputs_fail_two_requests(bench: Bench) -> None:
    bench.engine("a", padded=True)
    for number in range(20):
        bench.add(f"r{number}", 10, 11, 300)
    failed, finished, _ = isolate(bench, {("r3", 2), ("r11", 0)})
    assert sorted(failed) == ["r11", "r3"]
    assert len(finished) == 18


def test_a_call_too_big_for_the_engine_heals_by_halving(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", *[10] * 64)
    finished: list[str] = []
    while batch := bench.executor.next_batch(0.0):
        if len(batch[2]) > 16:
            assert bench.executor.batch_failed(batch[0], 0.0, False, True).failed == ()
        else:
            finished += bench.executor.batch_done(batch[0], 0.0)
    assert finished == ["r"]


def test_halves_are_sent_without_company(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10)
    bench.add("s", 10)
    bench.executor.batch_failed(bench.send()[0], 0.0, False, True)
    bench.add("t", 10)
    sent = []
    for _ in range(3):
        batch_id, _, parts = bench.send()
        sent.append(parts)
        bench.executor.batch_done(batch_id, 0.0)
    assert sent == [[("r", 0)], [("s", 0)], [("t", 0)]]


def test_a_half_stays_apart_through_an_engine_fault(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10)
    bench.add("s", 10)
    bench.executor.batch_failed(bench.send()[0], 0.0, False, True)
    batch_id, _, parts = bench.send()
    assert parts == [("r", 0)]
    bench.executor.batch_failed(batch_id, 0.0, True, False)
    bench.add("t", 10)
    sent = []
    for _ in range(3):
        batch_id, _, parts = bench.send()
        sent.append(parts)
        bench.executor.batch_done(batch_id, 0.0)
    assert sorted(sent) == [[("r", 0)], [("s", 0)], [("t", 0)]]


def test_a_half_is_as_urgent_as_its_most_urgent_input(bench: Bench) -> None:
    bench.engine("a")
    bench.add("batch", 11, band=Band.BATCH)
    bench.add("late", 12, band=Band.INTERACTIVE, deadline=99.0)
    bench.add("early", 13, band=Band.INTERACTIVE, deadline=50.0)
    batch_id, _, parts = bench.send()
    assert parts == [("early", 0), ("late", 0), ("batch", 0)]
    bench.executor.batch_failed(batch_id, 0.0, False, True)
    bench.add("between", 400, band=Band.INTERACTIVE, deadline=60.0)
    sent = []
    for _ in range(2):
        batch_id, _, parts = bench.send()
        sent.append(sorted(parts))
        bench.executor.batch_done(batch_id, 0.0)
    assert sent == [[("early", 0), ("late", 0)], [("between", 0)]]
    assert bench.send()[2] == [("batch", 0)]


def test_a_mixed_half_goes_with_its_most_urgent_band(bench: Bench) -> None:
    bench.engine("a")
    for name, band in (("a", Band.INTERACTIVE), ("b", Band.BATCH), ("c", Band.BATCH)):
        bench.add(name, 10, band=band)
    bench.executor.batch_failed(bench.send()[0], 0.0, False, True)
    bench.add("standard", 10)
    assert sorted(bench.send()[2]) == [("a", 0), ("b", 0)]


def test_a_cancelled_request_may_have_been_the_bad_one(bench: Bench) -> None:
    bench.engine("a")
    bench.add("bad", 10)
    bench.add("good", 10)
    batch_id, *_ = bench.send()
    assert bench.executor.remove("bad") == ()
    assert bench.executor.batch_failed(batch_id, 0.0, False, True) == BatchOutcome((), 1)
    assert bench.executor.batch_done(bench.send()[0], 0.0) == ["good"]


def test_equals_of_a_bad_input_fail_with_it(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10, keys=(7,))
    bench.add("s", 10, keys=(7,))
    outcome = bench.executor.batch_failed(bench.send()[0], 0.0, False, True)
    assert sorted(outcome.failed) == ["r", "s"]


def test_an_engine_fault_sends_the_inputs_elsewhere(bench: Bench) -> None:
    bench.engine("a")
    bench.engine("b")
    bench.add("r", 10, 10)
    batch_id, faulty, _ = bench.send()
    assert bench.executor.batch_failed(batch_id, 0.0, True, False) == BatchOutcome((), 2)
    batch_id, other, parts = bench.send()
    assert other != faulty
    assert len(parts) == 2
    assert bench.executor.batch_done(batch_id, 0.0) == ["r"]


def test_the_only_engine_is_asked_again_and_attempts_are_bounded(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10, 10)
    for _ in range(MAX_ATTEMPTS - 1):
        assert bench.executor.batch_failed(bench.send()[0], 0.0, True, False).failed == ()
    assert bench.executor.batch_failed(bench.send()[0], 0.0, True, False) == BatchOutcome(("r",))
    assert bench.executor.queued == 0


def test_what_cannot_be_retried_fails_at_once(bench: Bench) -> None:
    bench.engine("a", budget=10, slots=2)
    bench.add("r", 10, 10, 10)
    first, second = bench.send()[0], bench.send()[0]
    outcome = bench.executor.batch_failed(first, 0.0, False, False)
    assert outcome == BatchOutcome(("r",), 0, (second,))
    assert bench.executor.queued == 0
    assert bench.executor.batch_done(second, 0.0) == []


def test_removal_leaves_the_others_of_its_batch_alone(bench: Bench) -> None:
    bench.engine("a", slots=2, budget=20)
    bench.add("r", 10)
    bench.add("s", 10, 10)
    shared, *_ = bench.send()
    assert bench.executor.remove("r") == ()
    assert bench.executor.remove("r") == ()
    own, *_ = bench.send()
    assert sorted(bench.executor.remove("s")) == [shared, own]
    assert bench.executor.batch_done(shared, 0.0) == []
    assert bench.executor.batch_done(own, 0.0) == []
    assert bench.executor.counts[InputState.REMOVED] == 3


def test_an_id_may_come_again_while_its_old_inputs_are_in_flight(bench: Bench) -> None:
    bench.engine("a", slots=2)
    bench.add("r", 10)
    old, *_ = bench.send()
    bench.executor.remove("r")
    bench.add("r", 10)
    new, *_ = bench.send()
    assert bench.executor.batch_done(old, 0.0) == []
    assert bench.executor.batch_done(new, 0.0) == ["r"]


def test_duplicate_and_unknown_answers_change_nothing(bench: Bench) -> None:
    bench.engine("a")
    bench.add("r", 10, 10)
    batch_id, *_ = bench.send()
    assert bench.executor.batch_done(99, 0.0) == []
    assert bench.executor.batch_failed(99, 0.0, True, True) == BatchOutcome()
    assert bench.executor.batch_done(batch_id, 0.0) == ["r"]
    assert bench.executor.batch_done(batch_id, 0.0) == []


def test_one_id_twice_is_a_bug_of_the_caller(bench: Bench) -> None:
    bench.add("r", 10)
    with pytest.raises(RuntimeError, match="'r' is queued twice"):
        bench.add("r", 10)
    assert bench.executor.queued == 1


def test_promotion_moves_what_is_queued(bench: Bench) -> None:
    bench.engine("a", budget=10, slots=3)
    bench.add("first", 10, band=Band.STANDARD)
    bench.add("old", 10, 10, band=Band.BATCH)
    bench.executor.promote("old", Band.INTERACTIVE)
    bench.executor.promote("unknown", Band.INTERACTIVE)
    assert [bench.send()[2][0][0] for _ in range(3)] == ["old", "old", "first"]


def test_promotion_moves_a_rerank_call_too(bench: Bench) -> None:
    bench.engine("a")
    bench.add("first", 10)
    bench.add("old", 10, 500, kind="rerank", band=Band.BATCH)
    bench.executor.promote("old", Band.INTERACTIVE)
    assert bench.send()[2] == [("old", 0)]


def test_story(bench: Bench) -> None:
    bench.engine("a", budget=10)
    bench.add("r", 10, 10, 10)
    batch_id, *_ = bench.send()
    bench.executor.batch_done(batch_id, 0.0)
    bench.send()
    assert bench.executor.story("r") == {
        "inputs": 3, "queued": 1, "in_flight": 1, "done": 1, "engines": ["a"],
    }  # fmt: skip
    assert bench.executor.story("unknown") == {}


# -- the books ----------------------------------------------------------------------------


class Books(RuleBasedStateMachine):
    """Random requests, answers, faults, cancellations and engine losses: every input is in one
    place, is answered once at most, and no request is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.executor = EmbeddingExecutor("e5")
        self.now = 0.0
        self.seq = 0
        self.inputs: dict[str, int] = {}
        self.done: dict[str, set[int]] = {}
        self.open: set[str] = set()
        self.ended: set[str] = set()
        self.batches: dict[int, tuple[str, list[tuple[str, int]]]] = {}
        self.kinds: dict[str, str] = {}
        self.forms: dict[str, int | None] = {}
        self.specs: dict[str, EngineSpec] = {}
        self.lengths: dict[str, list[int]] = {}

    @rule(
        lengths=st.lists(st.sampled_from([-3, 0, 1, 14, 30, 33, 260, 600]), min_size=1, max_size=9),
        band=st.sampled_from(list(Band)),
        slack=st.sampled_from([math.inf, math.nan, 0.0, -5.0, 0.01, 0.5, 60.0]),
        keyed=st.booleans(),
        kind=st.sampled_from(["embedding", "embedding", "embedding", "rerank"]),
        virtual=st.floats(0, 3),
        form=st.sampled_from([None, 1, 1, 1, 2]),
    )
    def add(
        self,
        lengths: list[int],
        band: Band,
        slack: float,
        keyed: bool,
        kind: Kind,
        virtual: float,
        form: int | None,
    ) -> None:
        name = f"r{self.seq}"
        keys = tuple(10_000 * (form or 0) + tokens for tokens in lengths) if keyed else ()
        merge_key = form if kind == "embedding" else None
        info = RequestInfo(
            name, "e5", kind=kind, inputs=tuple(lengths), input_keys=keys, merge_key=merge_key
        )
        if merge_key is None:
            lengths = [sum(lengths)]  # it stays whole
        request = ScheduledRequest(info, self.seq, self.now)
        self.executor.add(request, band, self.now + slack, virtual)
        self.seq += 1
        self.inputs[name], self.done[name], self.kinds[name] = len(lengths), set(), kind
        self.forms[name] = merge_key
        self.lengths[name] = [max(1, tokens) for tokens in lengths]
        self.open.add(name)

    @rule(
        name=st.sampled_from("abcd"),
        state=st.sampled_from([EngineState.READY] * 4 + list(EngineState)),
        slots=st.integers(0, 3),
        budget=st.sampled_from([None, 0, 40, 300]),
        padded=st.booleans(),
        device=st.sampled_from(["cpu", "cuda"]),
        price=st.sampled_from([0.0, 1.0, 3.0]),
        profile=st.sampled_from([None, FAST, SLOW, EngineProfile(), *ABSURD]),
    )
    def engine(
        self,
        name: str,
        state: EngineState,
        slots: int,
        budget: int | None,
        padded: bool,
        device: str,
        price: float,
        profile: EngineProfile | None,
    ) -> None:
        spec = EngineSpec(
            name, ("e5",), device=device, price=price, profile=profile,
            max_batch_tokens=budget, padded=padded,
        )  # fmt: skip
        self.executor.engine_changed(name, spec, state, slots)
        self.specs[name] = spec

    @rule(name=st.sampled_from("abcd"))
    def engine_gone(self, name: str) -> None:
        self.executor.engine_gone(name)

    @rule(most=st.integers(1, 4))
    def form(self, most: int) -> None:
        for _ in range(most):
            batch = self.executor.next_batch(self.now)
            if batch is None:
                assert self.executor.wake_at > self.now
                return
            batch_id, engine, parts = batch
            places = [
                place for part in parts for place in ((part.request_id, part.index), *part.copies)
            ]
            assert batch_id not in self.batches
            assert len(set(places)) == len(places) > 0
            in_flight = {place for _, inside in self.batches.values() for place in inside}
            for name, index in places:
                assert name in self.open
                assert index not in self.done[name]
                assert (name, index) not in in_flight
            names = {name for name, _ in places}
            assert len(names) == 1 or all(self.kinds[name] == "embedding" for name in names)
            assert len({self.forms[name] for name in names}) == 1
            assert len(names) == 1 or None not in {self.forms[name] for name in names}
            self.batches[batch_id] = (engine, places)
            self.check_budget(self.specs[engine], [
                self.lengths[part.request_id][part.index] for part in parts
            ])  # fmt: skip

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), tokens=st.sampled_from([None, -1, 0, 1, 100, 10**30]))
    def answer(self, data: st.DataObject, tokens: int | None) -> None:
        batch_id = data.draw(st.sampled_from(sorted(self.batches)))
        _, places = self.batches.pop(batch_id)
        finished = self.executor.batch_done(batch_id, self.now, tokens)
        for name, index in places:
            if name in self.open:
                self.done[name].add(index)
        full = {name for name in self.open if len(self.done[name]) == self.inputs[name]}
        assert len(finished) == len(set(finished))
        assert set(finished) == full
        self.open -= full
        self.ended |= full

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), retryable=st.booleans(), bad_input=st.booleans())
    def fault(self, data: st.DataObject, retryable: bool, bad_input: bool) -> None:
        batch_id = data.draw(st.sampled_from(sorted(self.batches)))
        _, places = self.batches.pop(batch_id)
        outcome = self.executor.batch_failed(batch_id, self.now, retryable, bad_input)
        involved = {name for name, _ in places}
        assert set(outcome.failed) <= involved & self.open
        self.open -= set(outcome.failed)
        self.ended |= set(outcome.failed)
        assert outcome.requeued == sum(name in self.open for name, _ in places)
        self.check_orphans(outcome.orphaned)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(name)
        self.ended.add(name)
        self.check_orphans(self.executor.remove(name))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), band=st.sampled_from(list(Band)))
    def promote(self, data: st.DataObject, band: Band) -> None:
        self.executor.promote(data.draw(st.sampled_from(sorted(self.open))), band)

    @rule(seconds=st.sampled_from([0.001, 0.1, 5.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def check_budget(self, spec: EngineSpec, sent: list[int]) -> None:
        if len(sent) == 1:
            return
        work = max(sent) * len(sent) if spec.padded else sum(sent)
        assert work * self.executor._scale <= most_tokens(spec) * (1 + 1e-9)
        if spec.padded:
            assert max(sent) <= 2 * min(sent)

    def check_orphans(self, orphaned: tuple[int, ...]) -> None:
        assert len(set(orphaned)) == len(orphaned)
        for batch_id in orphaned:
            assert not any(name in self.open for name, _ in self.batches[batch_id][1])

    @invariant()
    def every_input_is_in_one_place(self) -> None:
        counts = self.executor.counts
        assert min(counts.values()) >= 0
        assert sum(counts.values()) == sum(self.inputs.values())
        assert self.executor.queued == counts[InputState.QUEUED]
        assert len(self.executor) == len(self.open)
        in_flight = sum(
            name in self.open for _, places in self.batches.values() for name, _ in places
        )
        assert counts[InputState.IN_FLIGHT] == in_flight
        done = sum(len(indices) for indices in self.done.values())
        assert counts[InputState.DONE] == done
        waiting = self.executor._waiting
        tokens = [
            one.tokens
            for request in self.executor._ledger.requests.values()
            for one in request.inputs
            if one.state is InputState.QUEUED
        ]
        assert sum(waiting.tokens) == sum(tokens)
        assert (len(waiting) > 0) == any(shelf.size for shelf in waiting.shelves())

    def teardown(self) -> None:
        """With one good engine and every batch answered nothing stays behind."""
        for name in "abcd":
            self.executor.engine_gone(name)
        for batch_id in list(self.batches):
            self.executor.batch_done(batch_id, self.now)
        spec = EngineSpec("last", ("e5",), profile=FAST)
        self.executor.engine_changed("last", spec, EngineState.READY, 1)
        while batch := self.executor.next_batch(self.now):
            self.now += 0.01
            self.executor.batch_done(batch[0], self.now)
        counts = self.executor.counts
        assert len(self.executor) == 0
        assert counts[InputState.QUEUED] == counts[InputState.IN_FLIGHT] == 0
        assert not list(self.executor._waiting.shelves())
        assert not any(self.executor._waiting.tokens)
        assert len(self.executor._batches) == 0


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
