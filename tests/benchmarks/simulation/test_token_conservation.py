"""Tokens in are tokens out, and KV is never overdrawn, whatever happens to an engine."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.sequence import Emission, Phase, Sequence
from sage_bench.simulation.step_profile import StepProfile

PROFILE = StepProfile(0.01, 0.0005, 0.001, 0.00001, 300)
EVENT = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 200), st.integers(1, 100)),
    st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
    st.tuples(st.just("stretch"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("hold"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("crash"), st.just(0), st.just(0)),
)
PAUSE = st.sampled_from([0.0, 0.005, 0.05, 0.5, 3.0])


class Books:
    """One engine, what was asked of it, and what came out."""

    def __init__(self, scheduling: str, seqs: int, budget: int) -> None:
        self.engine = LlmEngine(
            LlmEngineSpec(
                PROFILE,
                max_num_batched_tokens=max(budget, seqs),
                max_num_seqs=seqs,
                scheduling=scheduling,  # type: ignore[arg-type]
            )
        )
        self.sequences: list[Sequence] = []
        self.emitted: list[Emission] = []
        self.lost: set[object] = set()
        self.now = 0.0

    def run(self, until: float) -> None:
        while self.engine.next_at < until:
            self.emitted += self.engine.advance(self.engine.next_at)
            self.check_kv()
        self.now = until if until < math.inf else self.now

    def check_kv(self) -> None:
        engine = self.engine
        inside = engine.sequences()
        decoding = [s for s in inside if s.phase is Phase.DECODE]
        at = engine.next_at if engine.next_at < math.inf else self.now
        # Between two borders: what the running ones have, as the engine counts it there.
        assert 0 <= engine.free_tokens <= PROFILE.kv_tokens
        assert engine.decoding == len(decoding)
        assert engine.running <= engine.spec.max_num_seqs
        for one in inside:
            assert 0 <= engine.generated(one, min(at, self.now)) <= one.output

    def event(self, what: str, first: int, second: int) -> None:
        engine = self.engine
        if what == "submit" and first + second <= PROFILE.kv_tokens:
            one = Sequence(len(self.sequences), first, second, priority=first % 3)
            self.sequences.append(one)
            engine.submit(one, self.now)
        elif what == "abort" and self.sequences:
            engine.abort(self.sequences[first % len(self.sequences)], self.now)
        elif what == "stretch":
            engine.set_stretch(first / 2, self.now)
        elif what == "hold":
            engine.hold(self.now + first, self.now)
        elif what == "crash":
            self.lost |= {one.key for one in engine.crash()}
            assert engine.free_tokens == PROFILE.kv_tokens


@settings(max_examples=200)
@given(
    st.lists(st.tuples(PAUSE, EVENT), max_size=25),
    st.sampled_from(["fcfs", "priority"]),
    st.integers(1, 5),
    st.integers(4, 64),
)
def test_every_token_is_accounted_for(
    events: list[tuple[float, tuple[str, int, int]]], scheduling: str, seqs: int, budget: int
) -> None:
    books = Books(scheduling, seqs, budget)
    for pause, event in events:
        books.run(books.now + pause)
        books.event(*event)
    books.run(math.inf)
    engine = books.engine
    assert engine.free_tokens == PROFILE.kv_tokens
    assert engine.context == engine.decoding == engine.running == engine.waiting == 0

    firsts = [e.sequence.key for e in books.emitted if not e.finished]
    ends = [e.sequence.key for e in books.emitted if e.finished]
    assert len(firsts) == len(set(firsts))
    assert len(ends) == len(set(ends))
    times = [e.at for e in books.emitted]
    assert times == sorted(times)
    whole, cut = 0, 0
    for one in books.sequences:
        assert one.phase is Phase.ENDED
        finished = one.key in ends
        # Exactly one of: answered, given up by its client, lost in a crash.
        assert finished + one.aborted + (one.key in books.lost) == 1
        if finished:
            assert one.key in firsts
            assert one.generated == one.output
            whole += one.prompt - one.cached
        else:
            cut += one.prompt
    # Of what was cut off some was computed, and what was preempted was computed again.
    assert whole <= engine.prefilled_tokens <= whole + cut + engine.recomputed_tokens
    if not cut:
        assert engine.prefilled_tokens == whole + engine.recomputed_tokens
