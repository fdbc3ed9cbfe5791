"""How fast the queue drains, for ``retry-after``."""

from __future__ import annotations

import math

_TAU_S = 5.0
_UNKNOWN_S, _LONGEST_S = 30, 60


class DrainRate:
    """Completions per second, exponentially forgotten."""

    __slots__ = ("_at", "_rate")

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def count(self, now: float) -> None:
        """A request has been answered."""
        self._rate = self._rate * math.exp(-(now - self._at) / _TAU_S) + 1.0 / _TAU_S
        self._at = now

    def retry_after(self, queued: int, now: float) -> int:
        """Whole seconds until what is queued now will have drained, 1 to 60; 30 if unknown."""
        rate = self._now(now)
        if rate <= 1e-9:
            return _UNKNOWN_S
        return max(1, min(_LONGEST_S, math.ceil(queued / rate)))

    def _now(self, now: float) -> float:
        return self._rate * math.exp(-(now - self._at) / _TAU_S)
