"""Several gateways before the same engines: each schedules its share of every window and limit.

They know nothing of each other but their number, so that none waits for another and none can take
another down. The shares add up to the whole: no engine gets more than it may hold, no tenant more
than it was promised, however many gateways there are. The price is that a share that one gateway
leaves unused is not lent to another; spread clients evenly over them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from sage_gateway.rate_limits import RateLimit
from sage_prefect.control_plane.events import EngineSpec, TenantSpec


@dataclass(frozen=True, slots=True)
class Replicas:
    """Which of how many gateways this is.

    Args:
        count: of them all.
        index: of this one, from 0.
    """

    count: int = 1
    index: int = 0

    def share(self, whole: int, name: str) -> int:
        """Of ``whole`` what is this gateway's; remainders go round by ``name``. At least 1: of
        less than one for each, all together take more than the whole."""
        own, left = divmod(whole, self.count)
        turn = (self.index + zlib.crc32(name.encode())) % self.count
        return max(1, own + (turn < left))

    def engine(self, spec: EngineSpec) -> EngineSpec:
        """The engine as this gateway may use it."""
        if self.count == 1:
            return spec
        return replace(
            spec,
            max_concurrency=self.share(spec.max_concurrency, spec.name),
            kv_tokens=None if spec.kv_tokens is None else max(1, spec.kv_tokens // self.count),
        )

    def tenant(self, spec: TenantSpec) -> TenantSpec:
        """The tenant's caps here."""
        if self.count == 1:
            return spec
        return replace(
            spec,
            max_queued=self._of(spec.max_queued, spec.name),
            max_running=self._of(spec.max_running, spec.name),
        )

    def limit(self, limit: RateLimit, name: str) -> RateLimit:
        """A key's or tenant's limit here."""
        if self.count == 1:
            return limit
        return RateLimit(
            self._of(limit.rpm, name),
            self._of(limit.tpm, name),
            self._of(limit.max_parallel_requests, name),
        )

    def _of(self, whole: int | None, name: str) -> int | None:
        return whole if not whole else self.share(whole, name)


ALONE = Replicas()
