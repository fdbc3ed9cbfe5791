"""Whether a predicted wait has been too long for a while: bursts drain, standing queues do not."""

from __future__ import annotations

from sage_prefect.control_plane.events import Band

STANDING_S = 0.1
"""A tenant's wait must be over its bound for so long before anything of it is refused."""
_KEPT = 10_000

Flow = tuple[str, Band]
"""(tenant, band)"""


class StandingWait:
    """When each tenant's predicted wait was last within bounds."""

    __slots__ = ("_within_at",)

    def __init__(self) -> None:
        self._within_at: dict[Flow, float] = {}

    def is_too_long(self, flow: Flow, wait_s: float, allowed_s: float, now: float) -> bool:
        """Whether the wait of a new request is over its bound, and has been."""
        since = self._within_at.get(flow)
        if wait_s <= allowed_s or since is None:
            if len(self._within_at) >= _KEPT:
                self._within_at.clear()
            self._within_at[flow] = now
            return False
        return now - since >= STANDING_S
