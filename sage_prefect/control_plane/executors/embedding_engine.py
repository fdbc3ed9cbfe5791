"""One engine under the executor: the calls inside it, and what the next would take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from sage_prefect.control_plane.events import EngineSpec, EngineState
from sage_prefect.control_plane.executors.call_budget import (
    affordable,
    call_budget,
    most_tokens,
    worthwhile,
)
from sage_prefect.control_plane.executors.embedding_cost import EmbeddingCost

IN_TIME = 0.7
"""Share of the slack within which an engine's answer is expected for it to count as in time."""
_SERVING = (EngineState.READY, EngineState.WARMING)


@dataclass(slots=True)
class _Call:
    seconds: float
    sent_at: float


@dataclass(frozen=True, slots=True)
class Load:
    """One engine's part of the tokens that wait."""

    all: float
    urgent: float
    """Of critical and interactive requests."""


class EmbeddingEngine:
    """One engine: calls inside, predictions. It is taken to serve its calls one after another."""

    __slots__ = ("_calls", "_ended_at", "cost", "leaving", "name", "slots", "spec", "state")

    def __init__(self, spec: EngineSpec, state: EngineState, slots: int) -> None:
        self.name = spec.name
        self.spec = spec
        self.state = state
        self.slots = slots
        self.cost = EmbeddingCost(spec.profile)
        self.leaving = False
        """Removed; stays until its calls have ended."""
        self._calls: dict[int, _Call] = {}
        self._ended_at = -math.inf

    @property
    def serving(self) -> bool:
        """Whether it gets new calls at all."""
        return not self.leaving and self.state in _SERVING

    @property
    def free(self) -> bool:
        """Whether it gets a call now."""
        return self.serving and len(self._calls) < self.slots

    @property
    def calls(self) -> tuple[int, ...]:
        """Batches inside, oldest first."""
        return tuple(self._calls)

    @property
    def tier(self) -> int:
        """What it costs to use: 0 nothing, 1 a CPU, 2 the rest."""
        if self.spec.price <= 0:
            return 0
        return 1 if self.spec.device == "cpu" else 2

    def budget(self, slack_s: float) -> float:
        """Tokens of one call beside requests that have ``slack_s`` seconds."""
        return call_budget(self.cost, float(most_tokens(self.spec)), slack_s)

    def call_tokens(
        self, first: float, slack_s: float, latency_slack_s: float, load: Load, now: float
    ) -> float:
        """Tokens of a call whose first input has ``first`` and is due in ``slack_s``.

        It is short beside latency requests, unless they fill it; short enough for its first input;
        and no longer than what keeps all free engines busy for equally long.
        """
        most = float(most_tokens(self.spec))
        budget = max(call_budget(self.cost, most, latency_slack_s), min(most, load.urgent))
        seconds = IN_TIME * slack_s - self.wait_s(now)
        budget = affordable(self.cost, budget, seconds, first)
        return min(budget, max(worthwhile(self.cost), load.all))

    def wait_s(self, now: float) -> float:
        """Seconds until the calls inside have ended. One that is late is expected to take as long
        again as it is late, so that an engine that hangs loses its appeal."""
        if not self._calls:
            return 0.0
        first = self._due() - now
        return abs(first) + self._behind_first()

    def patience(self, now: float, own_s: float, other_s: float) -> float:
        """Until when a call of ``own_s`` seconds would rather wait for this engine than end in
        ``other_s`` seconds elsewhere."""
        return max(now + 1e-3, self._due() + other_s - own_s - self._behind_first())

    def send(self, batch_id: int, tokens: float, now: float) -> None:
        """A call of ``tokens`` begins."""
        self._calls[batch_id] = _Call(self.cost.call_s(tokens), now)

    def ended(self, batch_id: int, now: float, tokens: float | None) -> None:
        """A call has ended; ``tokens``: it was answered, and computed so many."""
        call = self._calls.pop(batch_id)
        if tokens is not None:
            self.cost.saw(now - max(call.sent_at, self._ended_at), tokens)
        self._ended_at = now

    def respect(self, spec: EngineSpec, state: EngineState, slots: int) -> None:
        """It has (perhaps) another specification; what was learned stays with its profile."""
        if spec.profile != self.spec.profile or spec.device != self.spec.device:
            self.cost = EmbeddingCost(spec.profile)
        self.spec, self.state, self.slots, self.leaving = spec, state, slots, False

    def _due(self) -> float:
        """When the oldest call inside should end."""
        for call in self._calls.values():
            return max(call.sent_at, self._ended_at) + call.seconds
        return self._ended_at

    def _behind_first(self) -> float:
        return sum(call.seconds for call in islice(self._calls.values(), 1, None))
