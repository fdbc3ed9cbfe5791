"""The fast engine against the plain one, and its rules one by one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.sequence import Emission, Phase, Sequence
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.simulation.stepwise_engine import PlainSequence, StepwiseEngine
from sage_prefect.common.errors import BenchmarkError, SettingsError

# Sums of small multiples of a power of two are exact in floating point, in any order.
EXACT = 2.0**-16


def serve(engine: LlmEngine, requests: list[tuple[float, Sequence]]) -> list[Emission]:
    emitted: list[Emission] = []
    for at, sequence in sorted(requests, key=lambda item: item[0]):
        while engine.next_at < at:
            emitted += engine.advance(engine.next_at)
        engine.submit(sequence, at)
    while engine.next_at < math.inf:
        emitted += engine.advance(engine.next_at)
    return emitted


@st.composite
def cases(draw: st.DrawFn, exact: bool) -> tuple[LlmEngineSpec, list[tuple[float, int, int, int]]]:
    def constant(most: int) -> float:
        return draw(st.integers(0, most)) * EXACT if exact else draw(st.floats(0, most * EXACT))

    seqs = draw(st.integers(1, 6))
    profile = StepProfile(
        EXACT + constant(64), constant(8), constant(16), constant(2), draw(st.integers(40, 400))
    )
    spec = LlmEngineSpec(
        profile,
        max_num_batched_tokens=draw(st.integers(seqs, 48)),
        max_num_seqs=seqs,
        scheduling=draw(st.sampled_from(["fcfs", "priority"])),
    )
    most = profile.kv_tokens // 2
    requests = [
        (
            draw(st.integers(0, 4000)) * EXACT if exact else draw(st.floats(0, 0.06)),
            draw(st.integers(1, most)),
            draw(st.integers(1, most)),
            draw(st.integers(0, 2)),
        )
        for _ in range(draw(st.integers(1, 14)))
    ]
    return spec, requests


def agree(
    spec: LlmEngineSpec, requests: list[tuple[float, int, int, int]], tolerance: float
) -> None:
    plain = [
        PlainSequence(i, at, prompt, output, priority)
        for i, (at, prompt, output, priority) in enumerate(requests)
    ]
    reference = StepwiseEngine(spec)
    reference.run(plain)
    engine = LlmEngine(spec)
    fast = [
        (at, Sequence(i, prompt, output, priority))
        for i, (at, prompt, output, priority) in enumerate(requests)
    ]
    serve(engine, fast)
    for (_, sequence), other in zip(fast, plain, strict=True):
        assert sequence.phase is Phase.ENDED
        assert sequence.generated == sequence.output == len(other.times)
        assert sequence.preemptions == other.preemptions
        assert sequence.first_at == pytest.approx(other.times[0], rel=tolerance, abs=tolerance)
        assert sequence.last_token_at == pytest.approx(other.times[-1], rel=tolerance, abs=0)
        assert sequence.max_gap_s == pytest.approx(other.max_gap_s, rel=1e-9, abs=1e-12)
    assert engine.preemptions == reference.preemptions
    assert engine.free_tokens == spec.profile.kv_tokens
    assert engine.context == engine.decoding == engine.running == engine.waiting == 0


@settings(max_examples=400, deadline=None)
@given(cases(exact=True))
def test_agrees_exactly_with_the_stepwise_engine(
    case: tuple[LlmEngineSpec, list[tuple[float, int, int, int]]],
) -> None:
    agree(*case, tolerance=0.0)


@settings(max_examples=200, deadline=None)
@given(cases(exact=False))
def test_agrees_to_a_billionth_on_any_constants(
    case: tuple[LlmEngineSpec, list[tuple[float, int, int, int]]],
) -> None:
    agree(*case, tolerance=1e-9)


PLAIN = StepProfile(0.01, 0.001, 0.001, 0.0, 1000)


def test_a_lone_request_takes_its_prompt_then_a_step_per_token() -> None:
    sequence = Sequence("a", 10, 4)
    emitted = serve(LlmEngine(LlmEngineSpec(PLAIN)), [(1.0, sequence)])
    assert [e.finished for e in emitted] == [False, True]
    assert emitted[0].at == pytest.approx(1.0 + 0.01 + 10 * 0.001)
    assert emitted[1].at == pytest.approx(emitted[0].at + 3 * 0.011)
    assert sequence.max_gap_s == pytest.approx(0.011)


def test_a_long_prompt_is_cut_into_chunks_and_stretches_the_steps_of_others() -> None:
    spec = LlmEngineSpec(PLAIN, max_num_batched_tokens=100, max_num_seqs=8)
    talker, long = Sequence("talker", 1, 50), Sequence("long", 300, 1)
    serve(LlmEngine(spec), [(0.0, talker), (0.05, long)])
    assert talker.max_gap_s == pytest.approx(0.01 + 99 * 0.001 + 0.001)


def test_the_head_of_the_line_blocks_those_behind_it() -> None:
    spec = LlmEngineSpec(StepProfile(0.01, 0, 0, 0, 100))
    first, big, small = Sequence("first", 50, 20), Sequence("big", 60, 1), Sequence("small", 1, 1)
    serve(LlmEngine(spec), [(0.0, first), (0.011, big), (0.012, small)])
    assert small.first_at >= big.first_at > first.last_token_at


def test_priority_lets_the_urgent_in_first_but_takes_no_slot() -> None:
    spec = LlmEngineSpec(PLAIN, max_num_seqs=1, scheduling="priority")
    running, batch, urgent = (
        Sequence("running", 1, 20, 3),
        Sequence("batch", 1, 5, 3),
        Sequence("urgent", 1, 5, 1),
    )
    serve(LlmEngine(spec), [(0.0, running), (0.01, batch), (0.02, urgent)])
    assert running.last_token_at < urgent.first_at < urgent.last_token_at < batch.first_at


def test_the_newest_is_preempted_and_computed_again() -> None:
    engine = LlmEngine(LlmEngineSpec(StepProfile(0.01, 0, 0, 0, 60)))
    old, new = Sequence("old", 20, 30), Sequence("new", 20, 30)
    serve(engine, [(0.0, old), (0.0, new)])
    assert (old.preemptions, new.preemptions) == (0, 1)
    assert engine.recomputed_tokens > new.prompt
    assert new.max_gap_s > 0.1


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="does not fit in 1000 KV tokens"):
        LlmEngine(LlmEngineSpec(PLAIN)).submit(Sequence("a", 900, 101), 0.0)
    with pytest.raises(BenchmarkError, match="more than its prompt"):
        LlmEngine(LlmEngineSpec(PLAIN)).submit(Sequence("a", 64, 1, chain=(1, 2)), 0.0)
    with pytest.raises(SettingsError, match="max_num_seqs=10"):
        LlmEngineSpec(PLAIN, max_num_batched_tokens=8, max_num_seqs=10)


def test_a_known_prefix_is_not_computed_again_and_is_counted_once_in_kv() -> None:
    engine = LlmEngine(LlmEngineSpec(PLAIN))
    first = Sequence("first", 200, 5, chain=(1, 2, 3))
    again = Sequence("again", 210, 5, chain=(1, 2, 3))
    serve(engine, [(0.0, first), (10.0, again)])
    assert (first.cached, again.cached) == (0, 192)
    assert again.first_at == pytest.approx(10.0 + 0.01 + 18 * 0.001)
    together = [(20.0 + i * 1e-3, Sequence(i, 200, 50, chain=(1, 2, 3))) for i in range(4)]
    for at, sequence in together:
        engine.advance(at)
        engine.submit(sequence, at)
    engine.advance(20.1)
    assert engine.running == 4
    # One copy of the prefix, and each sequence's own tail and answer.
    assert engine.free_tokens > 1000 - 192 - 4 * (8 + 50)


def test_an_answer_in_the_cache_serves_the_next_turn() -> None:
    engine = LlmEngine(LlmEngineSpec(PLAIN))
    serve(engine, [(0.0, Sequence("turn", 128, 64, chain=(1, 2), chain_after=(1, 2, 3)))])
    following = Sequence("next", 200, 1, chain=(1, 2, 3))
    serve(engine, [(9.0, following)])
    assert following.cached == 192


def test_the_cache_gives_way_to_running_requests_oldest_first() -> None:
    engine = LlmEngine(LlmEngineSpec(PLAIN))
    serve(engine, [(0.0, Sequence("a", 128, 1, chain=(1, 2)))])
    serve(engine, [(1.0, Sequence("b", 128, 1, chain=(3, 4)))])
    serve(engine, [(2.0, Sequence("big", 800, 50))])
    assert engine.cache.kept <= (1000 - 800) // 64
    assert engine.cache.hits((3,)) == (1, 0)
    assert engine.cache.hits((1, 2))[0] < 2


def test_an_abort_ends_silently_and_frees_its_kv() -> None:
    engine = LlmEngine(LlmEngineSpec(PLAIN))
    gone, stays, waits = Sequence("gone", 10, 90), Sequence("stays", 10, 9), Sequence("w", 10, 9)
    for sequence in (gone, stays):
        engine.submit(sequence, 0.0)
    emitted = engine.advance(0.05)
    engine.submit(waits, 0.05)
    engine.abort(waits, 0.05)
    engine.abort(gone, 0.05)
    engine.abort(gone, 0.05)
    while engine.next_at < math.inf:
        emitted += engine.advance(engine.next_at)
    assert [e.sequence.key for e in emitted if e.finished] == ["stays"]
    assert engine.free_tokens == 1000
    assert engine.waiting == 0


def test_slow_hang_and_crash() -> None:
    slow = LlmEngine(LlmEngineSpec(PLAIN))
    sequence = Sequence("a", 10, 101)
    slow.submit(sequence, 0.0)
    slow.advance(0.02)
    slow.set_stretch(2.0, 0.5)
    serve(slow, [])
    assert sequence.last_token_at == pytest.approx(0.02 + 100 * 0.011 * 2, rel=0.3)
    assert sequence.last_token_at > 0.02 + 100 * 0.011 * 1.4
    with pytest.raises(BenchmarkError, match="stretch 0"):
        slow.set_stretch(0.0, 9.0)

    hung, waiting = LlmEngine(LlmEngineSpec(PLAIN)), Sequence("b", 10, 5)
    hung.submit(waiting, 0.0)
    hung.hold(7.0, 0.0)
    serve(hung, [])
    assert waiting.first_at == pytest.approx(7.02)

    broken = LlmEngine(LlmEngineSpec(PLAIN))
    inside = [Sequence(i, 10, 50) for i in range(3)]
    for item in inside:
        broken.submit(item, 0.0)
    broken.advance(0.1)
    assert broken.crash() == inside
    assert broken.next_at == math.inf
    assert broken.free_tokens == 1000


@settings(max_examples=100, deadline=None)
@given(cases(exact=True), st.lists(st.floats(0, 0.1), max_size=6))
def test_steps_of_a_stream_can_be_followed_one_by_one(
    case: tuple[LlmEngineSpec, list[tuple[float, int, int, int]]], looks: list[float]
) -> None:
    spec, requests = case
    at, prompt, output, _ = requests[0]
    plain = PlainSequence("a", at, prompt, output)
    StepwiseEngine(spec).run([plain])
    engine, sequence = LlmEngine(spec), Sequence("a", prompt, output)
    engine.submit(sequence, at)
    now = at
    while True:
        border = engine.next_step_at(now)
        for look in looks:
            if now < look < border and engine.next_at > look:
                assert engine.generated(sequence, look) == sum(t <= look for t in plain.times)
        if border == math.inf:
            break
        now = border
        engine.advance(now)
        assert engine.generated(sequence, now) == sum(t <= now for t in plain.times)
    assert sequence.last_token_at == plain.times[-1]
