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


class AgeHeap(Generic[A]):
    """A heap by time; what has left is dropped when it surfaces.

    Args:
        is_here: whether one still waits.
    """

    __slots__ = ("_heap", "_is_here", "_pushed")

    def __init__(self, is_here: Callable[[A], bool]) -> None:
        self._is_here = is_here
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
        if self._pushed % 4096 == 0:
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
        return item[2].ages_at == item[0] and self._is_here(item[2])
