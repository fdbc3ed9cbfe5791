"""Embedding engines: batching, padding, faults."""

from __future__ import annotations

import math

import pytest

from sage_bench.simulation.embedding_engine import (
    Answer,
    EmbeddingCall,
    EmbeddingEngine,
    EmbeddingEngineSpec,
)
from sage_bench.simulation.step_profile import (
    EmbeddingProfile,
    embedding_profile,
    step_profile,
)
from sage_prefect.common.errors import BenchmarkError, SettingsError, UnknownNameError

RAGGED = EmbeddingProfile(0.01, 0.001)
PADDED = EmbeddingProfile(0.01, 0.001, padded=True)


def serve(engine: EmbeddingEngine, calls: list[tuple[float, EmbeddingCall]]) -> list[Answer]:
    answers: list[Answer] = []
    for at, call in calls:
        while engine.next_at < at:
            answers += engine.advance(engine.next_at)
        engine.submit(call, at)
    while engine.next_at < math.inf:
        answers += engine.advance(engine.next_at)
    return answers


def test_padding_costs_the_longest_input_times_their_number() -> None:
    for profile, work in ((RAGGED, 110), (PADDED, 200)):
        [answer] = serve(
            EmbeddingEngine(EmbeddingEngineSpec(profile)), [(0.0, EmbeddingCall("a", (10, 100)))]
        )
        assert answer.at == pytest.approx(0.01 + work * 0.001)
        assert profile.service_s((10, 100)) == pytest.approx(0.01 + work * 0.001)


def test_a_merging_engine_takes_what_waits_within_its_budget() -> None:
    spec = EmbeddingEngineSpec(RAGGED, merging=True, max_batch_tokens=30)
    calls = [(0.001 * i, EmbeddingCall(i, (10,))) for i in range(5)]
    answers = serve(EmbeddingEngine(spec), calls)
    times = [answer.at for answer in answers]
    assert [answer.call.key for answer in answers] == [0, 1, 2, 3, 4]
    assert times[1] == times[2] == times[3] < times[4]
    one_by_one = EmbeddingEngineSpec(RAGGED, merging=False)
    assert len({a.at for a in serve(EmbeddingEngine(one_by_one), calls)}) == 5


def test_aborted_calls_are_skipped_and_crashes_lose_the_rest() -> None:
    engine = EmbeddingEngine(EmbeddingEngineSpec(RAGGED, merging=False))
    calls = [EmbeddingCall(i, (10,)) for i in range(4)]
    for call in calls:
        engine.submit(call, 0.0)
    engine.advance(0.0)
    engine.abort(calls[0])
    engine.abort(calls[1])
    assert [a.call.key for a in engine.advance(0.041)] == [2]
    assert engine.crash() == [calls[3]]
    assert engine.next_at == math.inf


def test_a_hang_begins_nothing() -> None:
    engine = EmbeddingEngine(EmbeddingEngineSpec(RAGGED))
    engine.hold(5.0)
    [answer] = serve(engine, [(1.0, EmbeddingCall("a", (10,)))])
    assert answer.at == pytest.approx(5.02)


def test_wrong_values_name_themselves() -> None:
    with pytest.raises(BenchmarkError, match="inputs of at least 1 token"):
        EmbeddingCall("a", (3, 0))
    with pytest.raises(SettingsError, match="max_batch_tokens=0"):
        EmbeddingEngineSpec(RAGGED, max_batch_tokens=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'gpu-ragged'"):
        embedding_profile("gpu-raged")
    with pytest.raises(UnknownNameError, match="h100-70b"):
        step_profile("h100")
    with pytest.raises(SettingsError, match="speed 0"):
        step_profile("h100-70b").scaled(0)
