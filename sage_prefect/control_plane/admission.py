"""Early rejection: a request that would wait too long is told so at once.

Immediate dispatch has no goodput at all in overload, and a late drop serves requests on the edge of
their deadline; rejecting at arrival by predicted wait keeps the best goodput (CoDel's lesson in
LLM units). A queue must stand for a while before anything is rejected: a burst that drains is fine.
"""

from __future__ import annotations

import math

from sage_prefect.control_plane.events import Band

_FROM = [tuple(range(band, len(Band))) for band in Band]


class Drain:
    """Engine-seconds of queued work per band, and how fast they go.

    Args:
        tau: time constant of the rate, seconds.
    """

    __slots__ = ("_at", "_rate", "_tau", "queued")

    def __init__(self, tau: float, capacity: float, now: float) -> None:
        self._tau = tau
        self.queued = [0.0] * len(Band)
        # Until it is measured: each engine does one engine-second per second.
        self._rate = [capacity] * len(Band)
        self._at = now

    def drained(self, band: Band, cost_s: float, now: float) -> None:
        """So much queued work of ``band`` has gone into an engine."""
        if now > self._at:
            self._forget(now)
        rate, more = self._rate, cost_s / self._tau
        for at in _FROM[band]:
            rate[at] += more

    def wait_s(self, band: Band, ahead_s: float, now: float, floor: float) -> float:
        """Predicted wait of a request that has just joined ``band``; more urgent bands go first.

        Args:
            ahead_s: engine-seconds of its own band that go before it, itself included.
            floor: least rate to count with: engines that stand idle have drained nothing lately.
        """
        ahead = sum(self.queued[:band]) + min(self.queued[band], ahead_s)
        if ahead <= 0.0:
            return 0.0
        self._forget(now)
        return ahead / max(self._rate[band], floor, 1e-6)

    def _forget(self, now: float) -> None:
        if now > self._at:
            keep = math.exp((self._at - now) / self._tau)
            critical, interactive, standard, batch = self._rate
            self._rate = [critical * keep, interactive * keep, standard * keep, batch * keep]
            self._at = now


def retry_after_s(excess: float, spread: float) -> int:
    """Whole seconds after which it is worth trying again.

    Args:
        excess: predicted wait beyond what is allowed.
        spread: 0 to 1, random: clients must not come back all at once.
    """
    return max(1, min(60, math.ceil(min(60.0, max(0.0, excess) * (1.0 + 0.3 * spread)))))
