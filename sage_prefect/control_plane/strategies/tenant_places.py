"""A tenant's limit of running requests, for queues in order of arrival.

A tenant with a limit has no more requests in the lines than it may still run; the others are held
beside them, oldest first, and step in one by one. So no line is ever searched for a request that
may go, and nobody waits behind one that may not.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from sage_prefect.control_plane.events import TenantSpec
from sage_prefect.control_plane.scheduled_request import ScheduledRequest


class TenantPlaces:
    """Counts what tenants have running and in line, and holds what is over their limits."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._lined: dict[str, int] = {}
        """Requests in the lines, of tenants with a limit."""
        self._held: dict[str, ScheduledRequest] = {}
        self._order: dict[str, list[tuple[int, str]]] = {}
        """Of each tenant with held requests, oldest first; removal is lazy."""

    def are_under(self, tenants: Mapping[str, TenantSpec]) -> bool:
        """Whether these tenants' limits are the ones in force."""
        return self._limits == _limits_of(tenants)

    def limit(self, tenants: Mapping[str, TenantSpec]) -> None:
        """Take new limits. The lines are empty, and what was held is forgotten: the caller queues
        all of it again."""
        self._limits = _limits_of(tenants)
        self._lined.clear()
        self._held.clear()
        self._order.clear()

    def limits(self, tenant: str) -> bool:
        """Whether a tenant has a limit."""
        return tenant in self._limits

    def takes(self, request: ScheduledRequest) -> bool:
        """Whether a request may join its line; else it is held."""
        tenant = request.info.tenant
        limit = self._limits.get(tenant)
        if limit is None:
            return True
        lined = self._lined.get(tenant, 0)
        if lined + self._running.get(tenant, 0) < limit:
            self._lined[tenant] = lined + 1
            return True
        self._held[request.info.request_id] = request
        place = (request.seq, request.info.request_id)
        heapq.heappush(self._order.setdefault(tenant, []), place)
        return False

    def started(self, request: ScheduledRequest, *, in_line: bool = True) -> None:
        """A request runs; ``in_line``: it came from its line, else another policy sent it."""
        tenant = request.info.tenant
        if in_line and tenant in self._limits:
            self._lined[tenant] -= 1
        self._running[tenant] = self._running.get(tenant, 0) + 1

    def ended(self, request: ScheduledRequest) -> ScheduledRequest | None:
        """A running request has ended; the held one that joins its line now, if any."""
        tenant = request.info.tenant
        left = self._running[tenant] - 1
        if left:
            self._running[tenant] = left
        else:
            del self._running[tenant]
        return self._next(tenant) if self._order else None

    def left_line(self, request: ScheduledRequest) -> ScheduledRequest | None:
        """A request was taken out of its line; the held one that joins its line now, if any."""
        tenant = request.info.tenant
        if tenant not in self._limits:
            return None
        self._lined[tenant] -= 1
        return self._next(tenant)

    def drop(self, request: ScheduledRequest) -> bool:
        """Forget a held request; whether it was one."""
        return self._held.pop(request.info.request_id, None) is not None

    def held(self) -> Iterator[ScheduledRequest]:
        """All held requests, in no order."""
        return iter(self._held.values())

    def _next(self, tenant: str) -> ScheduledRequest | None:
        order = self._order.get(tenant)
        if not order:
            return None
        if self._lined.get(tenant, 0) + self._running.get(tenant, 0) >= self._limits[tenant]:
            return None
        while order:
            seq, request_id = heapq.heappop(order)
            request = self._held.get(request_id)
            if request is not None and request.seq == seq:
                del self._held[request_id]
                self._lined[tenant] = self._lined.get(tenant, 0) + 1
                return request
        del self._order[tenant]
        return None


def _limits_of(tenants: Mapping[str, TenantSpec]) -> dict[str, int]:
    specs = tenants.values()
    return {spec.name: spec.max_running for spec in specs if spec.max_running is not None}
