"""The sequences that wait to enter an engine: by arrival, or by ``(priority, arrival)``."""

from __future__ import annotations

import heapq
from collections import deque

from sage_bench.simulation.sequence import Sequence


class WaitingLine:
    """A line that drops aborted sequences when they come to its head.

    Args:
        by_priority: order by ``(priority, order)``; else those put back go first, then by arrival.
    """

    __slots__ = ("_by_priority", "_heap", "_line", "length")

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self.length = 0
        """Sequences that wait and are not aborted."""
        self._line: deque[Sequence] = deque()
        self._heap: list[tuple[int, int, Sequence]] = []

    def sequences(self) -> list[Sequence]:
        """Those that wait, next first."""
        if self._by_priority:
            everyone = [item[2] for item in sorted(self._heap, key=lambda item: item[:2])]
        else:
            everyone = list(self._line)
        return [sequence for sequence in everyone if not sequence.aborted]

    def head(self) -> Sequence | None:
        """The next to enter."""
        if not self.length:
            return None
        return self._heap[0][2] if self._by_priority else self._line[0]

    def push(self, sequence: Sequence, *, front: bool = False) -> bool:
        """Queue a sequence; whether it is the next to enter."""
        self.length += 1
        if self._by_priority:
            heapq.heappush(self._heap, (sequence.priority, sequence.order, sequence))
        elif front:
            self._line.appendleft(sequence)
        else:
            self._line.append(sequence)
        return self.head() is sequence

    def pop(self) -> None:
        """Take the head out."""
        self.length -= 1
        if self._by_priority:
            heapq.heappop(self._heap)
        else:
            self._line.popleft()
        self._drop_aborted()

    def aborted(self) -> None:
        """One of those that wait has been aborted."""
        self.length -= 1
        self._drop_aborted()

    def _drop_aborted(self) -> None:
        while self._heap and self._heap[0][2].aborted:
            heapq.heappop(self._heap)
        while self._line and self._line[0].aborted:
            self._line.popleft()
