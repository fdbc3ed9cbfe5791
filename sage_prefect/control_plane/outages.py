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
from collections.abc import Callable, Iterable, Iterator, Mapping

from sage_prefect.control_plane.events import EngineState
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

# One that is being started is worth waiting for.
MAY_SERVE = (EngineState.READY, EngineState.WARMING, EngineState.COLD)
_AWAY = (EngineState.SUSPECT, EngineState.DOWN)


class Outages:
    """The models that are out, each since when, and who waits for them.

    Args:
        ledger: the engines.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._since: dict[str, float] = {}
        self._ends: list[tuple[float, str, float]] = []
        """(when who was queued before has waited enough, model, since): stale ones are skipped."""
        # A request that is queued again has a second item here: items never compare equal.
        self._pushed = 0
        self._waits: list[tuple[float, int, ScheduledRequest]] = []

    def note(self, models: Iterable[str], now: float, wait_s: float) -> None:
        """Engines of these models came, left or changed their state."""
        for model in models:
            pool = self._ledger.pool(model)
            if not pool or may_serve(pool):
                self._since.pop(model, None)
            elif model not in self._since:
                self._since[model] = now
                heapq.heappush(self._ends, (now + wait_s, model, now))

    def may_end(self, model: str) -> bool:
        """Whether the model is out and one of its engines is expected back."""
        return model in self._since and any(
            entry.answered and entry.state in _AWAY for entry in self._ledger.pool(model).values()
        )

    def wait(self, request: ScheduledRequest, wait_s: float) -> bool:
        """A request has joined the queue; whether its model is out, so that it waits no longer than
        ``wait_s``."""
        if request.info.model not in self._since:
            return False
        self._pushed += 1
        end = self.end_of_wait(request, wait_s)
        heapq.heappush(self._waits, (end, self._pushed, request))
        return True

    def end_of_wait(self, request: ScheduledRequest, wait_s: float) -> float:
        """Until when it waits for an engine to come back; infinity: its model is not out."""
        return max(self._since.get(request.info.model, math.inf), request.queued_at) + wait_s

    def next_end(self) -> float:
        """When the next requests have waited enough; infinity: never."""
        ends, waits = self._ends, self._waits
        while ends and self._since.get(ends[0][1]) != ends[0][2]:
            heapq.heappop(ends)
        while waits and not self._counts(waits[0][2]):
            heapq.heappop(waits)
        return min(ends[0][0] if ends else math.inf, waits[0][0] if waits else math.inf)

    def given_up(
        self,
        now: float,
        wait_s: float,
        waiting_for: Callable[[str], list[ScheduledRequest]],
    ) -> Iterator[ScheduledRequest]:
        """Who has waited enough; the caller takes them out of their queue.

        Args:
            wait_s: in force now: who may wait longer than it began with is looked at again.
            waiting_for: the queued requests of a model.
        """
        while self.next_end() <= now < math.inf:
            while self._waits and self._waits[0][0] <= now:
                _, _, request = heapq.heappop(self._waits)
                if not self._counts(request):
                    continue
                if self.end_of_wait(request, wait_s) <= now:
                    yield request
                else:
                    self.wait(request, wait_s)
            if self._ends and self._ends[0][0] <= now:
                _, model, since = heapq.heappop(self._ends)
                if self._since.get(model) == since:
                    yield from [r for r in waiting_for(model) if r.queued_at <= since]

    def _counts(self, request: ScheduledRequest) -> bool:
        return request.state == "queued" and request.info.model in self._since


def may_serve(pool: Mapping[str, EngineEntry]) -> bool:
    """Whether some engine of the pool takes requests, or will when it is up."""
    for entry in pool.values():  # noqa: SIM110 - at each arrival, and the first one says it mostly
        if entry.state in MAY_SERVE:
            return True
    return False
