"""First come, first served, per model: the queue that the plain policies share.

Each model has its own line, so that a model whose engines are full does not hold up the others.
An engine that serves several models takes the oldest request of all their lines.
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from sage_prefect.control_plane.events import Band, BandSpec, Done, TenantSpec
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest, Told
from sage_prefect.control_plane.strategies.base import SchedulingPolicy
from sage_prefect.control_plane.strategies.placement import Key, PlacementIndex
from sage_prefect.control_plane.strategies.tenant_places import TenantPlaces

_EXPLAINED = 8  # engines that one decision lists; a bound, so that a decision stays O(log n)


class _Line:
    """The queued requests of one model; removal is lazy."""

    __slots__ = ("heap", "waiting")

    def __init__(self) -> None:
        self.heap: list[tuple[int, str]] = []
        self.waiting: dict[str, ScheduledRequest] = {}

    def push(self, request: ScheduledRequest) -> None:
        self.waiting[request.info.request_id] = request
        heapq.heappush(self.heap, (request.seq, request.info.request_id))

    def remove(self, request: ScheduledRequest) -> None:
        if self.waiting.get(request.info.request_id) is not request:
            return
        del self.waiting[request.info.request_id]
        if len(self.heap) > 64 and len(self.heap) > 2 * len(self.waiting):
            self.heap = [(r.seq, r.info.request_id) for r in self.waiting.values()]
            heapq.heapify(self.heap)

    def head(self) -> ScheduledRequest | None:
        while self.heap:
            seq, request_id = self.heap[0]
            request = self.waiting.get(request_id)
            if request is not None and request.seq == seq:
                return request
            heapq.heappop(self.heap)
        return None


class ArrivalOrderPolicy(SchedulingPolicy):
    """Oldest request first; a subclass says which engine is best by :meth:`placement_key`."""

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        super().__init__(ledger, rng)
        self._lines: dict[str, _Line] = {}
        self._size = 0
        self._places = TenantPlaces()
        self._placement = PlacementIndex(ledger, self.placement_key)
        # Models whose head may have become dispatchable since the last look.
        # In order of notice: a set's order would differ from process to process, and the replay of
        # a policy that draws lots with it.
        self._touched: dict[str, None] = {}

    @abstractmethod
    def placement_key(self, entry: EngineEntry) -> Key:
        """An engine's score; the smallest wins."""

    def place(self, request: ScheduledRequest) -> EngineEntry | None:
        """The engine that the request would go to now, or None."""
        return self._placement.best(request.info.model, request.tried)

    def configure(self, bands: Mapping[Band, BandSpec], tenants: Mapping[str, TenantSpec]) -> None:
        if self._places.are_under(tenants):
            return
        waiting = list(self.pending())
        self._places.limit(tenants)
        self._lines.clear()
        for request in waiting:
            if self._places.takes(request):
                self._join(request)

    def add(self, request: ScheduledRequest, now: float) -> None:
        self._size += 1
        if self._places.takes(request):
            self._join(request)

    def arrive(self, request: ScheduledRequest, now: float) -> EngineEntry | None:
        if self._size or self._places.limits(request.info.tenant):
            self.add(request, now)
            return None
        entry = self.place(request)
        if entry is None:
            self._size += 1
            self._join(request)
            del self._touched[request.info.model]  # it has been asked for
        else:
            self._places.started(request)
        return entry

    def remove(self, request: ScheduledRequest) -> None:
        if self._places.drop(request):
            self._size -= 1
        elif self._leave(request):
            self._size -= 1
            self._join(self._places.left_line(request))

    def adopt(self, request: ScheduledRequest, entry: EngineEntry, now: float) -> None:
        self._places.started(request, in_line=False)

    def left(
        self, request: ScheduledRequest, entry: EngineEntry, done: Done | None, now: float
    ) -> None:
        held = self._places.ended(request)
        if held is not None:
            self._join(held)

    def next_dispatch(self, now: float) -> tuple[ScheduledRequest, EngineEntry] | None:
        chosen: tuple[ScheduledRequest, EngineEntry] | None = None
        for model in list(self._touched):
            line = self._lines.get(model)
            head = line.head() if line is not None else None
            entry = self.place(head) if head is not None else None
            if head is None or entry is None:
                self._touched.pop(model, None)
            elif chosen is None or head.seq < chosen[0].seq:
                chosen = (head, entry)
        if chosen is not None:
            self._leave(chosen[0])
            self._size -= 1
            self._places.started(chosen[0])
        return chosen

    def engine_changed(self, entry: EngineEntry) -> None:
        self._placement.update(entry)
        if self._lines and entry.room > 0:
            self._touched.update((m, None) for m in entry.spec.models if m in self._lines)

    def pending(self) -> Iterator[ScheduledRequest]:
        everything = [r for line in self._lines.values() for r in line.waiting.values()]
        everything += self._places.held()
        return iter(sorted(everything, key=lambda request: request.seq))

    def waiting_for(self, model: str) -> list[ScheduledRequest]:
        line = self._lines.get(model)
        waiting = list(line.waiting.values()) if line is not None else []
        waiting += [request for request in self._places.held() if request.info.model == model]
        return sorted(waiting, key=lambda request: request.seq)

    def __len__(self) -> int:
        return self._size

    def scores(self, request: ScheduledRequest) -> Told:
        members = self.ledger.members(request.info.model)[:_EXPLAINED]
        return _listed, (members, [entry.last_turn for entry in members])

    def candidates(self, request: ScheduledRequest) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for entry in self.ledger.pool(request.info.model).values():
            if len(listed) == _EXPLAINED:
                break
            listed.append(
                {
                    "engine": entry.spec.name,
                    "state": entry.state.value,
                    "in_flight": len(entry.running),
                    "window": entry.spec.max_concurrency,
                    "score": self.placement_key(entry),
                }
            )
        return listed

    def _join(self, request: ScheduledRequest | None) -> None:
        if request is None:
            return
        model = request.info.model
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line()
        line.push(request)
        self._touched[model] = None

    def _leave(self, request: ScheduledRequest) -> bool:
        line = self._lines.get(request.info.model)
        if line is None or request.info.request_id not in line.waiting:
            return False
        line.remove(request)
        if not line.waiting:
            del self._lines[request.info.model]
        return True


def _listed(looked_at: tuple[tuple[EngineEntry, ...], list[int]]) -> list[tuple[str, int]]:
    return [(entry.name, turn) for entry, turn in zip(*looked_at, strict=True)]
