"""The engines that embed one model: their free call slots, and which takes the next batch.

The cheapest engine that finishes within ``IN_TIME`` of the slack gets it: engines that cost
nothing, then CPUs, then the rest. Where none is in time the one that is done first gets it; if
that one has no free slot the batch waits for it, rather than miss on an engine that is slower
still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
SCAN = 16
"""Free engines that are looked at per tier, and full ones."""
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


@dataclass(frozen=True, slots=True)
class Need:
    """What is to be placed: ``rest`` tokens of a request; times in seconds."""

    rest: float
    slack_s: float
    latency_slack_s: float
    avoid: frozenset[str]


class EnginePool:
    """All engines of one model. A choice looks at ``3 * SCAN`` free engines and ``SCAN`` full."""

    __slots__ = ("_engines", "_free", "_full")

    def __init__(self) -> None:
        self._engines: dict[str, EmbeddingEngine] = {}
        # In order of becoming free (or full), so that a scan starts with the longest idle.
        self._free: tuple[dict[str, EmbeddingEngine], ...] = ({}, {}, {})
        self._full: dict[str, EmbeddingEngine] = {}

    @property
    def has_free(self) -> bool:
        """Whether any engine gets a call now."""
        return any(self._free)

    def __getitem__(self, name: str) -> EmbeddingEngine:
        return self._engines[name]

    def get(self, name: str) -> EmbeddingEngine | None:
        """The engine of this name, also while it leaves."""
        return self._engines.get(name)

    def put(self, spec: EngineSpec, state: EngineState, slots: int) -> None:
        """An engine came or changed."""
        engine = self._engines.get(spec.name)
        if engine is None:
            engine = self._engines[spec.name] = EmbeddingEngine(spec, state, slots)
        else:
            engine.respect(spec, state, slots)
        self.settle(engine)

    def drop(self, name: str) -> None:
        """An engine was removed."""
        engine = self._engines.get(name)
        if engine is not None:
            engine.leaving = True
            self.settle(engine)

    def settle(self, engine: EmbeddingEngine) -> None:
        """File it anew after a change."""
        name = engine.name
        for free in self._free:
            free.pop(name, None)
        self._full.pop(name, None)
        if engine.free:
            self._free[engine.tier][name] = engine
        elif engine.serving:
            self._full[name] = engine
        elif engine.leaving and not engine.calls:
            del self._engines[name]

    def may_take(self, avoid: frozenset[str]) -> frozenset[str]:
        """``avoid``, or nothing if no engine outside it serves: better a doubtful one than none."""
        if not avoid:
            return avoid
        for pool in (*self._free, self._full):
            # At most len(avoid) of the names are in it.
            if any(name not in avoid for name in islice(pool, len(avoid) + 1)):
                return avoid
        return frozenset()

    def choose(self, need: Need, now: float) -> tuple[EmbeddingEngine | None, float]:
        """The engine that takes it now, or None and until when it waits for a better one.

        Infinity: until an engine becomes free.
        """
        in_time: tuple[int, float, float] | None = None
        cheapest: EmbeddingEngine | None = None
        soonest, first_s = None, math.inf
        for engine in self._scan(need.avoid):
            wait = engine.wait_s(now)
            budget = engine.budget(need.latency_slack_s)
            one = wait + engine.cost.call_s(min(budget, need.rest))
            if one < first_s:
                soonest, first_s = engine, one
            calls = math.ceil(need.rest / budget)
            whole = wait + calls * engine.cost.s0 + engine.cost.alpha * need.rest
            if whole <= IN_TIME * need.slack_s:
                score = (engine.tier, engine.spec.price * whole, whole)
                if in_time is None or score < in_time:
                    in_time, cheapest = score, engine
        if cheapest is not None:
            return cheapest, now
        if soonest is None:
            return None, math.inf
        return self._or_wait(soonest, first_s, need, now)

    def part_of(self, engine: EmbeddingEngine) -> float:
        """What ``engine``, which is free, can do of all that the free engines can do."""
        rate = 1.0 / engine.cost.alpha
        others = sum(1.0 / one.cost.alpha for one in self._scan(frozenset((engine.name,))))
        return rate / (rate + others)

    # -- inside ---------------------------------------------------------------------------

    def _scan(self, avoid: frozenset[str]) -> Iterator[EmbeddingEngine]:
        for free in self._free:
            for engine in islice(free.values(), SCAN):
                if engine.name not in avoid:
                    yield engine

    def _or_wait(
        self, soonest: EmbeddingEngine, first_s: float, need: Need, now: float
    ) -> tuple[EmbeddingEngine | None, float]:
        """``soonest`` takes it, unless a full engine will be done before and it would be late."""
        if first_s <= IN_TIME * need.slack_s:
            return soonest, now
        best, best_s, until = None, first_s, math.inf
        for engine in islice(self._full.values(), SCAN):
            if engine.name in need.avoid:
                continue
            own = engine.cost.call_s(min(engine.budget(need.latency_slack_s), need.rest))
            whole = engine.wait_s(now) + own
            if whole < best_s:
                best, best_s = engine, whole
                until = engine.patience(now, own, first_s)
        return (soonest, now) if best is None else (None, until)
