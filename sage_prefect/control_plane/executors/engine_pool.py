"""The engines that embed one model: their free call slots, and which takes the next batch.

The cheapest engine that finishes within ``IN_TIME`` of the slack gets it: engines that cost
nothing, then CPUs, then the rest. One whose accelerator an LLM engine needs for itself comes last,
and only once the others would need more than ``HOLD`` of the slack for all that waits. Where none
is in time the one that is done first gets it; if that one has no free slot the batch waits for it,
rather than miss on an engine that is slower still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from sage_prefect.control_plane.accelerator_split import Speed
from sage_prefect.control_plane.events import EngineSpec, EngineState
from sage_prefect.control_plane.executors.call_budget import most_tokens
from sage_prefect.control_plane.executors.embedding_engine import IN_TIME, EmbeddingEngine
from sage_prefect.control_plane.executors.shared_sites import SharedSites

_LOOK_AGAIN_S = 0.25
_MAY_SERVE = (EngineState.READY, EngineState.WARMING, EngineState.COLD)

HOLD, LONGEST_HOLD_S = 0.35, 30.0
SCAN = 16
"""Free engines that are looked at per tier, and full ones."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is to be placed: ``rest`` tokens of a request; times in seconds."""

    rest: float
    slack_s: float
    latency_slack_s: float
    avoid: frozenset[str]
    ahead: float = 0.0
    """Tokens that wait in its band and more urgent ones, its own among them."""
    urgent: bool = False
    """It does not wait for its turn on an accelerator that is shared."""


class EnginePool:
    """All engines of one model. A choice looks at ``3 * SCAN`` free engines and ``SCAN`` full.

    Args:
        sites: what the engines may take of accelerators that they share.
    """

    __slots__ = ("_engines", "_free", "_full", "_sites")

    def __init__(self, sites: SharedSites) -> None:
        self._sites = sites
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

    def has_other(self, avoid: frozenset[str]) -> bool:
        """Whether an engine that is not to be avoided serves, or will soon."""
        return any(
            engine.state in _MAY_SERVE and not engine.leaving and name not in avoid
            for name, engine in self._engines.items()
        )

    def rate(self) -> float:
        """Tokens per second of the engines that serve (of ``SCAN`` of them and the rest alike)."""
        serving = [engine for engine in self._engines.values() if engine.serving]
        seen = serving[:SCAN]
        total = sum(self._rate_of(engine) for engine in seen)
        return total * len(serving) / len(seen) if seen else 0.0

    def speed(self, waiting: float) -> Speed | None:
        """How fast the engines are, beside ``waiting`` tokens; None where none is on an
        accelerator."""
        token_s, elsewhere = math.inf, 0.0
        for engine in self._engines.values():
            if not engine.serving:
                continue
            own = _token_s(engine)
            if engine.spec.accelerator is None:
                elsewhere += 1.0 / own
            else:
                token_s = min(token_s, own)
        return None if token_s == math.inf else Speed(token_s, elsewhere, waiting)

    def any_cost(self) -> EmbeddingEngine | None:
        """Some engine, to tell costs by; None when there is none."""
        return next(iter(self._engines.values()), None)

    def listed(self, now: float, most: int) -> list[dict[str, object]]:
        """For ``explain``: up to ``most`` engines."""
        return [
            {
                "engine": engine.name,
                "state": engine.state.value,
                "calls": [len(engine.calls), engine.slots],
                "wait_s": round(engine.wait_s(now), 4),
                "tier": engine.tier,
            }
            for engine in islice(self._engines.values(), most)
        ]

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
        in_time: tuple[bool, int, float, float] | None = None
        cheapest: EmbeddingEngine | None = None
        soonest, first_s, opens_at = None, math.inf, math.inf
        for engine in self._scan(need.avoid):
            if engine.spec.accelerator is not None:
                at = self._sites.opens_at(engine.name)
                if at > now and (at == math.inf or not need.urgent):
                    opens_at = min(opens_at, at)
                    continue
            wait = engine.wait_s(now)
            budget = engine.budget(need.latency_slack_s)
            one = wait + engine.cost.call_s(min(budget, need.rest))
            if one < first_s:
                soonest, first_s = engine, one
            calls = math.ceil(need.rest / budget)
            whole = wait + calls * engine.cost.s0 + engine.cost.alpha * need.rest
            if whole <= IN_TIME * need.slack_s:
                crowded = self.is_crowded(engine)
                score = (crowded, engine.tier, engine.spec.price * whole, whole)
                if in_time is None or score < in_time:
                    in_time, cheapest = score, engine
        if cheapest is not None and in_time is not None:
            if in_time[0] and self._others_will_do(need, now):
                return None, min(opens_at, now + _LOOK_AGAIN_S)
            return cheapest, now
        if soonest is None:
            return None, opens_at
        return self._or_wait(soonest, first_s, need, now)

    def is_crowded(self, engine: EmbeddingEngine) -> bool:
        """Whether an LLM engine needs its accelerator for itself."""
        return engine.spec.accelerator is not None and self._sites.is_crowded(engine.name)

    def part_of(self, engine: EmbeddingEngine) -> float:
        """What ``engine``, which is free, can do of all that the free engines can do.

        Beside an idle engine only idle ones count: a call that waits behind another one gains
        nothing from being short.
        """
        rate = 1.0 / engine.cost.alpha
        idle = not engine.calls
        others = sum(
            1.0 / one.cost.alpha
            for one in self._scan(frozenset((engine.name,)))
            if not (idle and one.calls)
        )
        return rate / (rate + others)

    # -- inside ---------------------------------------------------------------------------

    def _rate_of(self, engine: EmbeddingEngine) -> float:
        """Tokens per second."""
        if engine.spec.accelerator is None:
            return 1.0 / engine.cost.alpha
        return self._sites.part(engine.name) / _token_s(engine)

    def _scan(self, avoid: frozenset[str]) -> Iterator[EmbeddingEngine]:
        for free in self._free:
            for engine in islice(free.values(), SCAN):
                if engine.name not in avoid:
                    yield engine

    def _others_will_do(self, need: Need, now: float) -> bool:
        """Whether full engines on no crowded accelerator can take all that waits, soon enough."""
        rate, wait = 0.0, math.inf
        for engine in islice(self._full.values(), SCAN):
            if engine.name not in need.avoid and not self.is_crowded(engine):
                rate += 1.0 / engine.cost.alpha
                wait = min(wait, engine.wait_s(now))
        allowed = min(LONGEST_HOLD_S, HOLD * need.slack_s)
        return rate > 0 and wait + need.ahead / rate <= allowed

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


def _token_s(engine: EmbeddingEngine) -> float:
    """Seconds per token of full calls, without a neighbour."""
    most = most_tokens(engine.spec)
    return engine.cost.alone_s(most) / most
