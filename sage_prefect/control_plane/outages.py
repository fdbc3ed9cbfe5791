"""Models whose engines are all away, and how long requests wait for one to come back.

A supervised engine is usually back within seconds, so an outage of a moment should cost nobody an
error; waiting without bound is worse than one. A request waits ``Limits.unavailable_wait_s`` from
its arrival, or from the beginning of the outage if it was queued before. It waits only for engines
that have answered before: one that never did may be a misspelt address, and one that drains will
not take anything.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping

from sage_prefect.control_plane.events import EngineState
from sage_prefect.control_plane.ledger import EngineEntry, Ledger

# One that is being started is worth waiting for.
MAY_SERVE = (EngineState.READY, EngineState.WARMING, EngineState.COLD)
_AWAY = (EngineState.SUSPECT, EngineState.DOWN)


class Outages:
    """The models that are out, each since when.

    Args:
        ledger: the engines.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._since: dict[str, float] = {}
        self._ends: list[tuple[float, str, float]] = []
        """(when its first requests have waited enough, model, since): stale ones are skipped."""

    def note(self, models: Iterable[str], now: float, wait_s: float) -> None:
        """Engines of these models came, left or changed their state."""
        for model in models:
            pool = self._ledger.pool(model)
            if not pool or may_serve(pool):
                self._since.pop(model, None)
            elif model not in self._since:
                self._since[model] = now
                heapq.heappush(self._ends, (now + wait_s, model, now))

    def since(self, model: str) -> float:
        """Since when the model is out; infinity: it is not."""
        return self._since.get(model, math.inf)

    def may_end(self, model: str) -> bool:
        """Whether the model is out and one of its engines is expected back."""
        return model in self._since and any(
            entry.answered and entry.state in _AWAY for entry in self._ledger.pool(model).values()
        )

    def next_end(self) -> float:
        """When the next model's first requests have waited enough; infinity: never."""
        while self._ends:
            at, model, since = self._ends[0]
            if self._since.get(model) == since:
                return at
            heapq.heappop(self._ends)
        return math.inf

    def ended_waits(self, now: float) -> list[tuple[str, float]]:
        """Models of which requests that were queued at (model, since) have waited enough."""
        ended: list[tuple[str, float]] = []
        while self.next_end() <= now < math.inf:
            _, model, since = heapq.heappop(self._ends)
            ended.append((model, since))
        return ended


def may_serve(pool: Mapping[str, EngineEntry]) -> bool:
    """Whether some engine of the pool takes requests, or will when it is up."""
    return any(entry.state in MAY_SERVE for entry in pool.values())
