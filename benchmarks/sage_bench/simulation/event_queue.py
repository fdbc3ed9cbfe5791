"""Virtual time: what is due, in order of time, then of when it was planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class EventQueue:
    """A heap of calls. ``now`` never goes back."""

    __slots__ = ("_heap", "_serial", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """Calls made so far: the measure of a run's size."""
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._serial = 0

    def push(self, at: float, call: Callable[[Any], None], payload: Any) -> None:
        """Plan ``call(payload)`` at a time (seconds); a time in the past means now."""
        self._serial += 1
        heapq.heappush(self._heap, (max(at, self.now), self._serial, call, payload))

    def step(self) -> None:
        """Make the next call."""
        at, _, call, payload = heapq.heappop(self._heap)
        self.now = at
        self.events += 1
        call(payload)

    @property
    def next_at(self) -> float | None:
        """When the next call is due; None: nothing is."""
        return self._heap[0][0] if self._heap else None
