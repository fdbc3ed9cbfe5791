"""Who has waited so long that it moves up by one band, and when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Ageing(Protocol):
    """What can grow old."""

    ages_at: float
    """Time of its one live place in the heap; infinity: none."""


A = TypeVar("A", bound=Ageing)
_LEAST_SWEPT = 1024


class AgeHeap(Generic[A]):
    """A heap by time; what has left is dropped when it surfaces, or when it is most of the heap.

    Args:
        is_here: whether one still waits.
        count: how many wait, at least: with it the cost of a push stays O(log n).
    """

    __slots__ = ("_count", "_heap", "_is_here", "_pushed")

    def __init__(self, is_here: Callable[[A], bool], count: Callable[[], int]) -> None:
        self._is_here = is_here
        self._count = count
        # One that comes back may still have an item here: items never compare equal.
        self._pushed = 0
        self._heap: list[tuple[float, int, A]] = []

    def push(self, one: A, at: float) -> None:
        """It is old at ``at``; an earlier place of it counts no more."""
        if one.ages_at == at:
            return
        self._pushed += 1
        one.ages_at = at
        heapq.heappush(self._heap, (at, self._pushed, one))
        if len(self._heap) > _LEAST_SWEPT and len(self._heap) > 4 * self._count():
            self._heap = [item for item in self._heap if self._lives(item)]
            heapq.heapify(self._heap)

    def next_at(self) -> float:
        """When the next one is old; infinity: none."""
        while self._heap and not self._lives(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def old(self, now: float) -> Iterator[A]:
        """Takes out those that are old; each may be pushed again meanwhile."""
        while self.next_at() <= now:
            one = heapq.heappop(self._heap)[2]
            one.ages_at = math.inf
            yield one

    def _lives(self, item: tuple[float, int, A]) -> bool:
        """Whether it is the live place of one that waits; if not, it is to be dropped."""
        at, _, one = item
        if one.ages_at != at:
            return False
        if self._is_here(one):
            return True
        one.ages_at = math.inf  # should it come back, it has no place
        return False
