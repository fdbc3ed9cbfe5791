"""How many tokens a second embedding calls ask for: steady, and quick where the demand jumps.

Two exponential means, one slow and one fast. Calls come at random and in very unequal sizes, so the
fast one varies; only where it leaves the slow one by more than that chance explains has the demand
changed, and the slow one begins anew from the fast one, as quick as that at first.
"""

from __future__ import annotations

import math

TAU_S = 10.0
"""Time constant of the demand while nothing has changed."""
FAST_S = 2.0
"""Time constant of what may show a change."""
SURE = 3.0
"""Standard deviations of the fast mean beyond which it is a change."""


class EmbeddingDemand:
    """Tokens per second that one model's calls ask for.

    The variance of an exponential mean of independent calls is their rate times their mean square
    over twice its time constant (Campbell's theorem).
    """

    __slots__ = ("_at", "_changed_at", "_fast", "_slow", "_squares")

    def __init__(self) -> None:
        self._changed_at = -math.inf
        self._slow = 0.0
        self._fast = 0.0
        self._squares = 0.0
        self._at = -math.inf

    def asked(self, tokens: float, now: float) -> None:
        """A call of ``tokens`` has come."""
        self._forget(now)
        tau = self._tau(now)
        self._slow += tokens / tau
        self._fast += tokens / FAST_S
        self._squares += tokens * tokens / tau

    def rate(self, now: float) -> float:
        """Tokens per second."""
        self._forget(now)
        slow, fast = self._slow, self._fast
        if abs(fast - slow) > SURE * math.sqrt(self._squares / (2.0 * FAST_S)):
            # The spread of the sizes goes on as it was, at the new rate.
            self._squares *= fast / slow
            self._slow = fast
            self._changed_at = now
        return self._slow

    def _forget(self, now: float) -> None:
        if now <= self._at:
            return
        passed = now - self._at
        keep = math.exp(-passed / self._tau(now))
        self._slow *= keep
        self._squares *= keep
        self._fast *= math.exp(-passed / FAST_S)
        self._at = now

    def _tau(self, now: float) -> float:
        return min(TAU_S, FAST_S + (now - self._changed_at))
