"""An LLM engine with vLLM's scheduling rules, in virtual time at O(log n) per request.

Rules (vLLM 0.32, ``v1/core/sched/scheduler.py``): a step has one token budget; running sequences
go before waiting ones; waiting ones enter in order (arrival, or ``(priority, arrival)``) and the
first that does not fit blocks the rest; at most ``max_num_seqs`` run; a whole prompt must fit in
the KV cache; long prompts are prefilled in chunks; when a decoding sequence finds no KV the newest
(or the worst ``(priority, arrival)``) is preempted and computed again later, and nothing enters in
that step.

While no prompt is in work the batch is constant, so k steps take ``k(c0+bn+gC) + gn k(k-1)/2``
seconds: the engine jumps to the next end of a sequence or of the KV cache, and an arrival cuts the
jump at the next step's border (the quadratic is solved). Sequences end at a known step number.

Two simplifications against vLLM: KV is counted by the token instead of by blocks of 16, and a
prompt's whole KV is reserved when it enters (vLLM checks the whole, then takes it chunk by chunk).
:mod:`sage_bench.simulation.stepwise_engine` does the same the plain way, as the tests' reference.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Literal

from sage_bench.simulation.prefix_cache import PrefixCache
from sage_bench.simulation.sequence import Emission, Phase, Sequence
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.simulation.token_gaps import PRUNE_AT, TokenGaps
from sage_bench.simulation.waiting_line import WaitingLine
from sage_prefect.common.errors import BenchmarkError, SettingsError


@dataclass(frozen=True, slots=True)
class LlmEngineSpec:
    """Settings of an engine, under vLLM's names.

    Raises:
        SettingsError: a limit is below 1, or ``max_num_seqs`` is above the token budget.
    """

    profile: StepProfile
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    block_tokens: int = 64
    """Tokens per hash of :attr:`Sequence.chain`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise SettingsError(
                f"max_num_seqs={self.max_num_seqs} must be from 1 to "
                f"max_num_batched_tokens={self.max_num_batched_tokens}."
            )
        if self.scheduling not in ("fcfs", "priority") or self.block_tokens < 1:
            raise SettingsError(
                f"scheduling={self.scheduling!r} must be fcfs or priority, "
                f"block_tokens={self.block_tokens} at least 1."
            )


class LlmEngine:
    """One engine. The caller keeps time: it calls :meth:`advance` when :attr:`next_at` has come.

    Times are seconds of the caller's clock and never go back.
    """

    __slots__ = (
        "_aborting",
        "_admitted",
        "_ends",
        "_gaps",
        "_held_until",
        "_last_step_s",
        "_line",
        "_order",
        "_partial",
        "_prefilled",
        "_private",
        "_segment_at",
        "_segment_steps",
        "_segment_stretch",
        "_step",
        "_victims",
        "busy_s",
        "cache",
        "context",
        "decoding",
        "next_at",
        "preemptions",
        "prefilled_tokens",
        "recomputed_tokens",
        "spec",
        "stretch",
    )

    def __init__(self, spec: LlmEngineSpec) -> None:
        self.spec = spec
        self.stretch = 1.0
        """Factor on every iteration's time: a slow-down, or a GPU shared with another engine."""
        self.busy_s = 0.0
        self.preemptions = 0
        self.recomputed_tokens = 0
        """Tokens computed a second time after a preemption."""
        self.prefilled_tokens = 0
        """Prompt tokens computed; hits of the prefix cache are not among them."""
        self._order = 0
        self._step = 0
        self._held_until = 0.0
        self._reset()

    def _reset(self) -> None:
        self.next_at = math.inf
        """When something is due: the end of a segment of steps, or the start of one."""
        self.decoding = 0
        self.context = 0
        self.cache = PrefixCache(self.spec.block_tokens)
        self._private = 0
        self._line = WaitingLine(self.spec.scheduling == "priority")
        self._admitted: dict[int, Sequence] = {}
        self._victims: list[tuple[int, int, int, Sequence]] = []
        self._ends: list[tuple[int, int, int, Sequence]] = []
        self._partial: Sequence | None = None
        self._prefilled: list[Sequence] = []
        self._aborting: list[Sequence] = []
        self._segment_at = 0.0
        self._segment_steps = 0
        self._segment_stretch = 1.0
        self._last_step_s = 0.0
        self._gaps = TokenGaps()

    # -- reading --------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Sequences that have not entered, or were preempted."""
        return self._line.length

    @property
    def running(self) -> int:
        """Sequences that have KV: decoding ones and those whose prompt is in work."""
        return len(self._admitted)

    @property
    def free_tokens(self) -> int:
        """KV tokens that nobody uses now."""
        return (
            self.spec.profile.kv_tokens
            - self._private
            - self.cache.pinned * self.cache.block_tokens
        )

    def sequences(self) -> list[Sequence]:
        """All sequences inside, running first, in order of entry."""
        return [*self._admitted.values(), *self._line.sequences()]

    def generated(self, sequence: Sequence, now: float) -> int:
        """Tokens that ``sequence`` has generated by ``now`` (``next_at`` has not passed)."""
        if sequence.phase is not Phase.DECODE:
            return sequence.generated
        done = self._step + self._steps_by(now)
        return sequence.output - (sequence.finish_step - done)

    def next_step_at(self, now: float) -> float:
        """The first step border after ``now``; inf while idle. For drivers that stream tokens."""
        if not self._segment_steps:
            return self.next_at
        steps = min(self._steps_by(now) + 1, self._segment_steps)
        return self._border(steps)

    # -- requests -------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now: float) -> None:
        """Take a request in.

        Raises:
            BenchmarkError: it can never fit in the KV cache, or its chain is longer than its
                prompt. A caller that models a server answers 400.
        """
        spec = self.spec
        if sequence.prompt + sequence.output > spec.profile.kv_tokens:
            raise BenchmarkError(
                f"sequence {sequence.key!r} of {sequence.prompt} + {sequence.output} tokens does "
                f"not fit in {spec.profile.kv_tokens} KV tokens."
            )
        if len(sequence.chain) * spec.block_tokens > sequence.prompt:
            raise BenchmarkError(
                f"sequence {sequence.key!r}: {len(sequence.chain)} blocks of "
                f"{spec.block_tokens} are more than its prompt of {sequence.prompt} tokens."
            )
        sequence.order = self._order
        self._order += 1
        first = self._line.push(sequence)
        if self._segment_steps > 1:
            # Behind a blocked head, or with no slot free, it changes nothing in this segment.
            if first and self.decoding < spec.max_num_seqs:
                self._cut(now)
        elif not self._segment_steps and self.next_at == math.inf:
            self.next_at = max(now, self._held_until)

    def abort(self, sequence: Sequence, now: float) -> None:
        """The client has gone: the sequence ends at the next step's border, emitting nothing."""
        if sequence.phase is Phase.ENDED or sequence.aborted:
            return
        sequence.aborted = True
        if sequence.phase is Phase.WAITING:
            sequence.phase = Phase.ENDED
            self._line.aborted()
            if self._segment_steps > 1:
                self._cut(now)  # the head may have been what blocked the others
            return
        self._aborting.append(sequence)
        if self._segment_steps > 1:
            self._cut(now)

    # -- time -----------------------------------------------------------------------------

    def advance(self, now: float) -> list[Emission]:
        """Everything that leaves the engine until ``now``, in order."""
        emitted: list[Emission] = []
        while self.next_at <= now:
            if self._segment_steps:
                self._finish_segment(emitted)
            self._plan(self.next_at)
        return emitted

    def set_stretch(self, factor: float, now: float) -> None:
        """From the next step's border on, every iteration takes ``factor`` times as long."""
        if factor == self.stretch:
            return
        if not 0 < factor < math.inf:
            raise BenchmarkError(f"stretch {factor} must be a number above 0.")
        if self._segment_steps > 1:
            self._cut(now)
        self.stretch = factor

    def hold(self, until: float, now: float) -> None:
        """Hang: after the step in work no other starts before ``until``."""
        if self._segment_steps > 1:
            self._cut(now)
        self._held_until = max(self._held_until, until)
        if not self._segment_steps and self.next_at != math.inf:
            self.next_at = max(self.next_at, self._held_until)

    def crash(self) -> list[Sequence]:
        """Lose everything inside at once; returns what was lost."""
        lost = [s for s in self.sequences() if not s.aborted]
        for sequence in lost:
            sequence.phase = Phase.ENDED
        self._held_until = 0.0
        self._reset()
        return lost

    # -- steps ----------------------------------------------------------------------------

    def _base_s(self) -> float:
        profile = self.spec.profile
        return profile.c0 + profile.b * self.decoding + profile.g * self.context

    def _border(self, steps: int) -> float:
        """When ``steps`` steps of the present segment have ended."""
        if steps == self._segment_steps:
            return self.next_at
        growth = self.spec.profile.g * self.decoding
        return self._segment_at + self._segment_stretch * (
            steps * self._base_s() + growth * (steps * (steps - 1) / 2)
        )

    def _steps_by(self, now: float) -> int:
        """Steps of the present segment that have ended by ``now``."""
        if self._segment_steps <= 1 or now >= self.next_at:
            return self._segment_steps if now >= self.next_at else 0
        steps = self._first_border_from(now)
        return steps if self._border(steps) <= now else steps - 1

    def _first_border_from(self, now: float) -> int:
        """The smallest number of steps (at least 1) that end at ``now`` or later."""
        elapsed = (now - self._segment_at) / self._segment_stretch
        base, growth = self._base_s(), self.spec.profile.g * self.decoding
        if growth > 0:
            linear = base - growth / 2
            root = (math.sqrt(linear * linear + 2 * growth * max(0.0, elapsed)) - linear) / growth
        else:
            root = elapsed / base
        steps = min(max(1, math.ceil(root)), self._segment_steps)
        while steps > 1 and self._border(steps - 1) >= now:
            steps -= 1
        while steps < self._segment_steps and self._border(steps) < now:
            steps += 1
        return steps

    def _cut(self, now: float) -> None:
        """End the segment at the first step's border at or after ``now``."""
        if now >= self.next_at:
            return
        steps = self._first_border_from(now)
        if steps < self._segment_steps:
            end = self._border(steps)
            growth = self.spec.profile.g * self.decoding
            self._last_step_s = self._segment_stretch * (self._base_s() + growth * (steps - 1))
            self._segment_steps = steps
            self.next_at = end

    def _finish_segment(self, emitted: list[Emission]) -> None:
        at, steps = self.next_at, self._segment_steps
        self.busy_s += at - self._segment_at
        self._segment_steps = 0
        self._step += steps
        grown = steps * self.decoding
        self.context += grown
        self._private += grown
        self._note_gap(self._last_step_s)
        ends, step = self._ends, self._step
        while ends and ends[0][0] <= step:
            _, _, epoch, sequence = heapq.heappop(ends)
            if sequence.epoch == epoch:
                self._end(sequence, at, emitted)
        for sequence in self._prefilled:
            self._start_decode(sequence, at, emitted)
        self._prefilled.clear()

    def _start_decode(self, sequence: Sequence, at: float, emitted: list[Emission]) -> None:
        sequence.generated += 1
        if sequence.first_at < 0:
            sequence.first_at = at
            if not sequence.aborted:
                emitted.append(Emission(at, sequence, False))
        else:
            sequence.max_gap_s = max(sequence.max_gap_s, at - sequence.last_token_at)
        sequence.phase = Phase.DECODE
        sequence.since_step = self._step
        sequence.finish_step = self._step + sequence.output - sequence.generated
        self.decoding += 1
        self.context += sequence.prompt + sequence.generated
        if sequence.finish_step == self._step:
            self._end(sequence, at, emitted)
        else:
            heapq.heappush(
                self._ends, (sequence.finish_step, sequence.order, sequence.epoch, sequence)
            )

    def _end(self, sequence: Sequence, at: float, emitted: list[Emission]) -> None:
        self._take_gap(sequence)
        self._leave(sequence)
        if sequence.chain_after:
            self.cache.keep(sequence.chain_after)
        sequence.last_token_at = at
        if not sequence.aborted:
            emitted.append(Emission(at, sequence, True))

    def _leave(self, sequence: Sequence, *, ended: bool = True) -> None:
        """Take a running sequence out and free its KV."""
        if sequence.phase is Phase.ENDED:
            return
        if sequence.phase is Phase.DECODE:
            sequence.generated = sequence.output - (sequence.finish_step - self._step)
            self.decoding -= 1
            self.context -= sequence.prompt + sequence.generated
            held = sequence.prompt + sequence.generated - 1
        else:
            held = sequence.prefill_length
            if self._partial is sequence:
                self._partial = None
            elif sequence in self._prefilled:
                self._prefilled.remove(sequence)
        self._private -= held - sequence.pinned * self.cache.block_tokens
        if sequence.pinned:
            self.cache.release(sequence.chain)
            sequence.pinned = 0
        sequence.epoch += 1
        del self._admitted[sequence.order]
        if ended:
            sequence.phase = Phase.ENDED

    # -- planning -------------------------------------------------------------------------

    def _plan(self, at: float) -> None:
        """Choose what the next step does, as vLLM's ``schedule()``, and how far to jump."""
        if self._aborting:
            for sequence in self._aborting:
                self._leave(sequence)
            self._aborting.clear()
        if at < self._held_until:
            self.next_at = self._held_until if self._admitted or self.waiting else math.inf
            return
        spec = self.spec
        preempted = False
        free = self.free_tokens
        while self.decoding > free:
            self._preempt_one(at)
            preempted = True
            free = self.free_tokens
        budget = spec.max_num_batched_tokens - self.decoding
        tokens = 0
        partial = self._partial
        if partial is not None:
            tokens = self._prefill(partial, budget)
        while not preempted and self._line.length and tokens < budget:
            if len(self._admitted) >= spec.max_num_seqs:
                break
            head = self._line.head()
            if head is None or not self._admit(head):
                break
            tokens += self._prefill(head, budget - tokens)
        if self.cache.kept:
            self.cache.shrink(self.free_tokens // self.cache.block_tokens)
        self.prefilled_tokens += tokens
        profile = spec.profile
        n = self.decoding
        if not tokens and not n:
            if self.waiting or self._admitted:
                raise RuntimeError("an engine has work and can do none of it. This is a bug.")
            self.next_at = math.inf
            return
        base = self._base_s()
        steps = 1
        if tokens:
            last = self.stretch * (base + profile.a * tokens)
            self.next_at = at + last
        else:
            ends = self._ends
            while ends[0][3].epoch != ends[0][2]:
                heapq.heappop(ends)
            # A step that preempts lets nobody in; the one after it may.
            if not preempted:
                steps = min(self.free_tokens // n, ends[0][0] - self._step)
            growth = profile.g * n
            last = self.stretch * (base + growth * (steps - 1))
            self.next_at = at + self.stretch * (steps * base + growth * (steps * (steps - 1) / 2))
        self._segment_at, self._segment_steps, self._last_step_s = at, steps, last
        self._segment_stretch = self.stretch

    def _admit(self, sequence: Sequence) -> bool:
        """Give the head of the queue its KV, if it fits."""
        cache, length = self.cache, sequence.prompt + sequence.generated
        hits, shared = cache.hits(sequence.chain) if sequence.chain else (0, 0)
        blocks = len(sequence.chain)
        private = length - blocks * cache.block_tokens
        if private + (blocks - shared) * cache.block_tokens > self.free_tokens - self.decoding:
            return False  # what is left after this step's own tokens of the running ones
        self._line.pop()
        if blocks:
            cache.pin(sequence.chain)
        sequence.pinned = blocks
        self._private += private
        # The last token is always computed: the step that ends the prompt samples from it.
        cached = min(hits * cache.block_tokens, length - 1)
        if not sequence.preemptions:
            sequence.cached = cached
        else:
            self.recomputed_tokens += length - cached
        sequence.prefill_length = length
        sequence.prefill_left = length - cached
        sequence.phase = Phase.PREFILL
        sequence.epoch += 1
        self._admitted[sequence.order] = sequence
        if self.spec.scheduling == "priority":
            heapq.heappush(
                self._victims, (-sequence.priority, -sequence.order, sequence.epoch, sequence)
            )
        return True

    def _prefill(self, sequence: Sequence, budget: int) -> int:
        """Compute up to ``budget`` tokens of a prompt in this step; returns how many."""
        tokens = min(sequence.prefill_left, budget)
        sequence.prefill_left -= tokens
        if sequence.prefill_left:
            self._partial = sequence
        else:
            self._prefilled.append(sequence)
            if self._partial is sequence:
                self._partial = None
        return tokens

    def _preempt_one(self, at: float) -> None:
        if self.spec.scheduling == "fcfs":
            # Dicts keep the order of entry.
            victim = self._admitted[next(reversed(self._admitted))]
        else:
            while self._victims[0][3].epoch != self._victims[0][2]:
                heapq.heappop(self._victims)
            victim = heapq.heappop(self._victims)[3]
        if victim.phase is Phase.DECODE:
            self._take_gap(victim)
            victim.last_token_at = at
        self._leave(victim, ended=False)
        victim.preemptions += 1
        self.preemptions += 1
        victim.phase = Phase.WAITING
        self._line.push(victim, front=True)

    # -- gaps between tokens --------------------------------------------------------------

    def _note_gap(self, seconds: float) -> None:
        self._gaps.note(self._step, seconds)
        if len(self._gaps) > PRUNE_AT:
            decoding = (s for s in self._admitted.values() if s.phase is Phase.DECODE)
            self._gaps.forget_before(min((s.since_step for s in decoding), default=self._step))

    def _take_gap(self, sequence: Sequence) -> None:
        longest = self._gaps.longest_since(sequence.since_step)
        sequence.max_gap_s = max(sequence.max_gap_s, longest)
