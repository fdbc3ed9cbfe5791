"""The longest time between two tokens of a sequence, without noting every token.

All decoding sequences get a token at every step, so a sequence's longest gap is the longest step
since it began to decode: a maximum over a suffix of the engine's steps. Only steps that are longer
than all after them can be one; they are kept with falling lengths.
"""

from __future__ import annotations

from bisect import bisect_left

PRUNE_AT = 2048


class TokenGaps:
    """Steps by number; seconds."""

    __slots__ = ("_seconds", "_steps")

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._seconds: list[float] = []

    def __len__(self) -> int:
        return len(self._steps)

    def note(self, step: int, seconds: float) -> None:
        """The steps up to ``step`` have ended, the longest of the new ones after ``seconds``."""
        steps, kept = self._steps, self._seconds
        while kept and kept[-1] <= seconds:
            kept.pop()
            steps.pop()
        kept.append(seconds)
        steps.append(step)

    def longest_since(self, step: int) -> float:
        """The longest step after ``step``; 0 if there was none."""
        at = bisect_left(self._steps, step + 1)
        return self._seconds[at] if at < len(self._seconds) else 0.0

    def forget_before(self, step: int) -> None:
        """Nobody will ask for steps before ``step`` any more."""
        keep = bisect_left(self._steps, step)
        del self._steps[:keep], self._seconds[:keep]
