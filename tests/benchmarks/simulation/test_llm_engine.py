"""The fast engine against the plain one, and its rules one by one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.simulation.llm_engine import LlmEngine, LlmEngineSpec
from sage_bench.simulation.sequence import Emission, Phase, Sequence
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.simulation.stepwise_engine import PlainSequence, StepwiseEngine

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
