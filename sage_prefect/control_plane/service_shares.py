"""Who takes more than its share: engine-seconds of each tenant's requests that are inside engines.

What is inside counts, not what was served lately: a long request disturbs its neighbours as long as
it stays. Every question and every change is O(1), however many tenants there are.
"""

from __future__ import annotations

RAMP = 0.2
"""Share of all, above the limit, with which a tenant leaves the most room to the others: what
varies by chance about the limit costs next to nothing."""


class ServiceShares:
    """What is inside the engines, by tenant.

    Args:
        excess: a tenant is over its share with so many times what its weight gives it among the
            tenants inside (at most half way from there to everything)...
        least: ... and with at least this share of all: a smaller one disturbs nobody.
    """

    __slots__ = ("_excess", "_inside", "_least", "_total", "_weight")

    def __init__(self, excess: float, least: float) -> None:
        self._excess = excess
        self._least = least
        self._inside: dict[str, list[float]] = {}  # engine-seconds, requests, weight
        self._total = 0.0
        self._weight = 0.0

    def enter(self, tenant: str, weight: float, cost_s: float) -> None:
        """A request of so many engine-seconds goes into an engine."""
        own = self._inside.get(tenant)
        if own is None:
            own = self._inside[tenant] = [0.0, 0.0, weight]
            self._weight += weight
        own[0] += cost_s
        own[1] += 1
        self._total += cost_s

    def leave(self, tenant: str, cost_s: float) -> None:
        """It has left; ``cost_s`` as it was given to :meth:`enter`."""
        own = self._inside.get(tenant)
        if own is None:
            return
        own[0] -= cost_s
        own[1] -= 1
        self._total -= cost_s
        if own[1] <= 0:
            del self._inside[tenant]
            self._total -= own[0]
            self._weight -= own[2]
            if not self._inside:
                self._total = self._weight = 0.0  # what rounding has left

    def is_over(self, tenant: str) -> bool:
        """Whether a tenant takes far more than its share while others are inside too."""
        return self.over(tenant) > 0.0

    def over(self, tenant: str) -> float:
        """By how much a tenant is over its share while others are inside too: 0, not at all, to 1,
        with ``RAMP`` of all more than what is called over."""
        own = self._inside.get(tenant)
        if own is None or own[0] <= self._least * self._total or len(self._inside) < 2:
            return 0.0
        fair = own[2] / self._weight
        limit = max(self._least, min(self._excess * fair, (1.0 + fair) / 2))
        return max(0.0, min(1.0, (own[0] / self._total - limit) / RAMP))
