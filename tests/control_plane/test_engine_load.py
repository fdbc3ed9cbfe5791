"""What is inside one engine: its books against a plain list of requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage_prefect.control_plane.engine_load import (
    DEFAULT_BUDGET,
    DEFAULT_KV_TOKENS,
    PREFILL_RATE_TAU_S,
    EngineLoad,
)
from sage_prefect.control_plane.events import (
    Band,
    EngineProfile,
    EngineSpec,
    EngineState,
    RequestInfo,
)
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.window import COLD, WindowRules

PROFILE = EngineProfile(c0=0.03, a=1e-4, b=2e-4, g=2e-7, source="test")


def load_of(**fields: object) -> EngineLoad:
    state = fields.pop("state", EngineState.READY)
    spec = EngineSpec("e", ("m",), **{"max_concurrency": 64, "profile": PROFILE, **fields})  # type: ignore[arg-type]
    return EngineLoad(EngineEntry(spec, state), WindowRules())  # type: ignore[arg-type]


def request(seq: int = 0, **fields: object) -> ScheduledRequest:
    info = RequestInfo(f"r{seq}", "m", stream=bool(fields.pop("stream", True)))
    return ScheduledRequest(info, seq, 0.0, engine="e", **fields)  # type: ignore[arg-type]


# -- what it is made of -----------------------------------------------------------------------


def test_what_a_specification_leaves_open_is_taken_to_be_ample() -> None:
    load = load_of()
    assert (load.kv_tokens, load.budget) == (DEFAULT_KV_TOKENS, DEFAULT_BUDGET)
    load = load_of(kv_tokens=1000, max_batch_tokens=512)
    assert (load.kv_tokens, load.budget) == (1000, 512)


@pytest.mark.parametrize("state", [EngineState.COLD, EngineState.WARMING])
def test_an_engine_that_is_not_warm_begins_small(state: EngineState) -> None:
    assert load_of(state=state).window.size == COLD
    assert load_of().window.size == 64


def test_a_new_specification_is_followed() -> None:
    load = load_of()
    load.respect(EngineSpec("e", ("m",), 8, kv_tokens=500, max_batch_tokens=100))
    assert (load.window.size, load.kv_tokens, load.budget) == (8, 500, 100)


def test_the_windows_are_told_when_they_are_full() -> None:
    load = load_of(max_concurrency=4)
    for seq in range(2):
        load.enter(request(seq), 10.0, 10.0, 0.0)
    assert not load.window.full
    load.enter(request(2), 10.0, 10.0, 0.0)
    assert load.window.full  # one place is left: the next one fills it
    assert not load.window.full_batch
    for seq in range(3, 3 + load.window.batch):
        assert not load.window.full_batch
        load.enter(request(seq, band=Band.BATCH), 10.0, 10.0, 0.0)
    assert load.window.full_batch


# -- predictions ------------------------------------------------------------------------------


def test_a_request_is_predicted_with_itself_inside() -> None:
    load = load_of()
    load.enter(request(0), 0.0, 1000.0, 0.0)
    alone = load.model.tpot_s(2, 1500.0, 200.0 / PREFILL_RATE_TAU_S)
    assert load.tpot_with(0.0, 200.0, 500.0) == pytest.approx(alone)


def test_the_rate_of_prefill_is_that_of_the_last_seconds() -> None:
    load = load_of()
    for second in range(60):
        load.enter(request(second), 1000.0, 1000.0, float(second))
    # The mean over a long time, seen just after an arrival: half an interval ahead.
    assert load.prefill_rate(59.5) == pytest.approx(1000.0, rel=0.02)
    assert load.prefill_rate(59.0 + PREFILL_RATE_TAU_S) == pytest.approx(
        load.prefill_rate(59.0) / math.e
    )
    assert load_of().prefill_rate(5.0) == 0.0


def test_prompts_ahead_delay_the_first_token() -> None:
    load = load_of()
    before = load.ttft(100.0)
    load.enter(request(0), 2000.0, 2000.0, 0.0)
    waited = load.ttft(100.0)
    assert waited > before + 2000.0 * PROFILE.a
    load.first_token(load_request := request(1), 1.0)  # was never sent here: nothing changes
    assert not load_request.prefilling
    assert load.ttft(100.0) == waited


def test_the_tightest_promise_is_that_of_who_is_inside_and_not_batch_work() -> None:
    load = load_of()
    assert load.tightest_tpot() == math.inf
    first, second = request(0, tpot_slo_s=0.1), request(1, tpot_slo_s=0.05)
    again = request(2, tpot_slo_s=0.05)
    batch = request(3, tpot_slo_s=0.01, band=Band.BATCH)
    for one in (first, second, again, batch, request(4)):
        load.enter(one, 1.0, 1.0, 0.0)
    assert load.tightest_tpot() == 0.05
    load.leave(second, 1.0)
    assert load.tightest_tpot() == 0.05
    load.leave(again, 1.0)
    assert load.tightest_tpot() == 0.1
    load.leave(first, 1.0)
    load.leave(batch, 1.0)
    assert load.tightest_tpot() == math.inf


def test_clean_is_what_has_only_decoded_since() -> None:
    load = load_of()
    one = request(0)
    load.enter(one, 100.0, 100.0, 1.0)
    assert not load.is_clean(2.0)  # its prompt is on its way
    load.first_token(one, 3.0)
    assert not load.is_clean(2.0)
    assert load.is_clean(3.0)
    load.sampled_at = 4.0
    assert not load.is_clean(3.5)


# -- answers that do not stream ----------------------------------------------------------------


def test_an_answer_that_does_not_stream_is_through_its_prompt_when_that_was_predicted() -> None:
    load = load_of()
    expected = load.ttft(1000.0)
    one = request(0, stream=False)
    load.enter(one, 1000.0, 1000.0, 5.0)
    load.assume(5.0 + 0.99 * expected)
    assert one.prefilling
    assert load.waiting == 1
    load.assume(5.0 + expected)
    assert not one.prefilling
    assert load.waiting == 0
    assert load.prefill == 0.0


def test_a_stream_says_itself_when_its_prompt_is_through() -> None:
    load = load_of()
    one = request(0)
    load.enter(one, 1000.0, 1000.0, 0.0)
    load.assume(1e6)
    assert one.prefilling


def test_it_is_not_assumed_of_a_second_attempt_or_of_one_that_is_elsewhere() -> None:
    load = load_of()
    one = request(0, stream=False)
    load.enter(one, 1000.0, 1000.0, 0.0)
    load.leave(one, 0.01)
    load.enter(one, 100_000.0, 1000.0, 0.02)
    load.assume(1.0)
    assert one.prefilling
    load.leave(one, 1.0)
    one.engine = "other"
    one.prefilling = True
    load.assume(1e6)
    assert one.prefilling
    assert not load.assumed


# -- preemptions ------------------------------------------------------------------------------


def test_a_rise_of_the_preemption_counter_shrinks_window_and_cache_limit() -> None:
    load = load_of()
    load.saw_preemptions(0.0)
    assert (load.window.size, load.kv_limit) == (64, 0.92)
    load.saw_preemptions(3.0)
    assert load.window.size == int(64 * 0.9)
    assert load.kv_limit == 0.88
    load.saw_preemptions(3.0)
    assert load.window.size == int(64 * 0.9)


def test_preemptions_before_the_first_report_are_not_held_against_it() -> None:
    load = load_of()
    load.saw_preemptions(1000.0)
    assert load.window.size == 64


def test_a_counter_that_begins_anew_is_no_rise() -> None:
    load = load_of()
    for count in (5.0, 0.0, math.nan, 0.0):
        load.saw_preemptions(count)
    assert load.window.size == 64
    load.saw_preemptions(1.0)
    assert load.window.size < 64


# -- the books --------------------------------------------------------------------------------


class LoadMachine(RuleBasedStateMachine):
    """Requests come, answer and go; counts and sums are those of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.load = load_of()
        self.inside: list[ScheduledRequest] = []
        self.tokens: dict[int, float] = {}
        self.now = 0.0
        self.seq = 0

    @rule(
        band=st.sampled_from(Band),
        uncached=st.integers(1, 5000).map(float),
        kv=st.integers(1, 9000).map(float),
        promise=st.sampled_from([0.05, 0.1, math.inf]),
        stream=st.booleans(),
    )
    def enter(self, band: Band, uncached: float, kv: float, promise: float, stream: bool) -> None:
        one = request(self.seq, band=band, tpot_slo_s=promise, stream=stream)
        before = (float(len(self.inside)), sum(self.tokens.values()))
        ahead = sum(r.uncached for r in self.inside if r.prefilling)
        self.load.enter(one, uncached, kv, self.now)
        assert one.load_at_dispatch == before
        assert (one.prefill_ahead > 0) == bool(ahead)
        # The first in line is partly through.
        assert one.prefill_ahead <= max(1.0, ahead)
        self.inside.append(one)
        self.tokens[one.seq] = kv
        self.seq += 1

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), what=st.sampled_from(["first", "grow", "leave"]))
    def go_on(self, data: st.DataObject, what: str) -> None:
        one = data.draw(st.sampled_from(self.inside))
        if what == "first":
            self.load.first_token(one, self.now)
            assert not one.prefilling
        elif what == "grow":
            self.load.grow(one, 7)
            self.tokens[one.seq] += 7
        else:
            self.load.leave(one, self.now)
            self.inside.remove(one)
            del self.tokens[one.seq]

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.load.assume(self.now)

    @invariant()
    def the_books_agree(self) -> None:
        load, inside = self.load, self.inside
        assert load.batch == sum(r.band is Band.BATCH for r in inside)
        assert load.running == len(inside)
        assert load.waiting == sum(r.prefilling for r in inside)
        assert load.prefill == sum(r.uncached for r in inside if r.prefilling)
        assert load.context == sum(self.tokens.values())
        promises = [r.tpot_slo_s for r in inside if r.band is not Band.BATCH]
        assert load.tightest_tpot() == min(promises, default=math.inf)
        assert 0.0 <= load.prefill_rate(self.now) < math.inf


TestLoad = LoadMachine.TestCase
TestLoad.settings = settings(max_examples=60, stateful_step_count=30)
