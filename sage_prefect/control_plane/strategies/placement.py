"""Index of the engines of each model by a key, smallest first, in O(log engines).

Entries are pushed when an engine changes and dropped when they surface and are stale (their
version is not the engine's): nothing is searched, nothing is moved.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Set

from sage_prefect.control_plane.ledger import EngineEntry, Ledger

Key = tuple[float, ...]


class PlacementIndex:
    """Finds the best engine with room for a model.

    Args:
        ledger: the engines.
        key: an engine's score; the smallest wins.
    """

    def __init__(self, ledger: Ledger, key: Callable[[EngineEntry], Key]) -> None:
        self._ledger = ledger
        self._key = key
        self._heaps: dict[str, list[tuple[Key, str, int]]] = {}
        for entry in ledger:
            self.update(entry)

    def update(self, entry: EngineEntry) -> None:
        """Take note that ``entry`` changed."""
        if not entry.has_room():
            return
        spec = entry.spec
        item = (self._key(entry), spec.name, entry.version)
        for model in spec.models:
            heap = self._heaps.get(model)
            if heap is None:
                heap = self._heaps[model] = []
            heapq.heappush(heap, item)
            if len(heap) > 64 and len(heap) > 4 * len(self._ledger.pool(model)):
                self._rebuild(model)

    def best(self, model: str, avoid: Set[str] = frozenset()) -> EngineEntry | None:
        """The engine with room and the smallest key; one to avoid only if there is no other."""
        heap = self._heaps.get(model)
        if not heap:
            return None
        pool = self._ledger.pool(model)
        avoided: list[tuple[Key, str, int]] = []
        found: EngineEntry | None = None
        while heap:
            item = heap[0]
            entry = pool.get(item[1])
            # One that had room when it was listed has it as long as its version stands.
            if entry is None or entry.version != item[2]:
                heapq.heappop(heap)
                continue
            if item[1] not in avoid:
                found = entry
                break
            avoided.append(heapq.heappop(heap))
        if avoided:
            for item in avoided:
                heapq.heappush(heap, item)
            if found is None:
                found = pool[avoided[0][1]]
        if not heap:
            del self._heaps[model]
        return found

    def _rebuild(self, model: str) -> None:
        fresh = [
            (self._key(entry), entry.name, entry.version)
            for entry in self._ledger.pool(model).values()
            if entry.room > 0
        ]
        heapq.heapify(fresh)
        self._heaps[model] = fresh
