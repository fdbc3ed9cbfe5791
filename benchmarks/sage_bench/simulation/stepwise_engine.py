"""The rules of :mod:`sage_bench.simulation.llm_engine` written the plain way: one step at a time.

The reference that the fast engine must agree with. It costs O(running) per step, knows no prefix
cache, no aborts and no faults, and keeps every token's time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_bench.simulation.llm_engine_spec import LlmEngineSpec


@dataclass(eq=False)
class PlainSequence:
    """A request and the times of its tokens."""

    key: object
    arrival: float
    prompt: int
    output: int
    priority: int = 0
    order: int = 0
    left: int = 0
    length: int = 0
    times: list[float] = field(default_factory=list)
    preemptions: int = 0

    @property
    def max_gap_s(self) -> float:
        """The longest time between two tokens."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


class StepwiseEngine:
    """Serves a list of requests and fills in their token times."""

    def __init__(self, spec: LlmEngineSpec) -> None:
        self.spec = spec
        self.steps = 0
        self.preemptions = 0

    def run(self, sequences: list[PlainSequence]) -> None:
        """Serve all ``sequences``; their times are seconds."""
        arrivals = sorted(sequences, key=lambda s: s.arrival)
        for order, sequence in enumerate(arrivals):
            sequence.order = order
        waiting: list[PlainSequence] = []
        running: list[PlainSequence] = []
        now = 0.0
        while arrivals or waiting or running:
            if not waiting and not running:
                now = max(now, arrivals[0].arrival)
            while arrivals and arrivals[0].arrival <= now:
                waiting.append(arrivals.pop(0))
            now = self._step(now, waiting, running)

    def _kv(self, running: list[PlainSequence]) -> int:
        used = 0
        for s in running:
            prefilling = s.left > 0
            used += s.length if prefilling else s.prompt + len(s.times) - 1
        return self.spec.profile.kv_tokens - used

    def _by_rule(self, sequence: PlainSequence) -> tuple[int, int]:
        return (sequence.priority, sequence.order)

    def _step(
        self, now: float, waiting: list[PlainSequence], running: list[PlainSequence]
    ) -> float:
        spec, profile = self.spec, self.spec.profile
        priority = spec.scheduling == "priority"
        preempted = False
        while sum(s.left == 0 for s in running) > self._kv(running):
            victim = max(running, key=self._by_rule) if priority else running[-1]
            running.remove(victim)
            victim.preemptions += 1
            self.preemptions += 1
            waiting.insert(0, victim)
            preempted = True
        free = self._kv(running)
        decoding = [s for s in running if s.left == 0]
        # The KV that this step's tokens take is gone for those that want to enter.
        free -= len(decoding)
        context = sum(s.prompt + len(s.times) for s in decoding)
        budget = spec.max_num_batched_tokens - len(decoding)
        tokens = 0
        finished: list[PlainSequence] = []
        for s in running:
            if s.left:
                chunk = min(s.left, budget - tokens)
                s.left -= chunk
                tokens += chunk
                if not s.left:
                    finished.append(s)
        if not preempted:
            while waiting and tokens < budget and len(running) < spec.max_num_seqs:
                head = min(waiting, key=self._by_rule) if priority else waiting[0]
                length = head.prompt + len(head.times)
                if length > free:
                    break
                waiting.remove(head)
                running.append(head)
                free -= length
                head.length = length
                chunk = min(length, budget - tokens)
                head.left = length - chunk
                tokens += chunk
                if not head.left:
                    finished.append(head)
        self.steps += 1
        now += profile.c0 + profile.a * tokens + profile.b * len(decoding) + profile.g * context
        for s in decoding + finished:
            s.times.append(now)
            if len(s.times) == s.output:
                running.remove(s)
        return now
