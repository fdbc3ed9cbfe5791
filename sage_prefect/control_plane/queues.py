"""Who is next: bands, inside them tenants by virtual time, inside these requests by deadline.

Virtual time is engine-seconds over the tenant's weight, so that one currency serves chat and
embedding, short and long (VTC, arXiv 2401.00588, charges tokens instead). A tenant that comes back
is lifted to the present less a small lag: it cannot bank credit while idle. Removal is lazy
everywhere: a heap's stale top is dropped when it surfaces. Each step costs O(log n).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

LAG_S = 1.0
"""Engine-seconds (over weight) by which a returning tenant may be behind the present."""

KEPT_ACCOUNTS = 10_000
"""Tenants per band whose virtual time is known although nothing of theirs is queued."""

_PUSHES = itertools.count()
_COUNTED_TENANTS = 32
_Item = tuple[float, int, str, int]
"""(virtual time, 0, tenant, serial), or without fairness (deadline, place in arrival, tenant,
serial). The serial tells the live item: compiled, a tuple has no identity."""


class Account:
    """A tenant's virtual time in one band, over all models."""

    __slots__ = (
        "_rate", "_rate_at", "below_at", "cost_s", "queued", "queues", "tenant", "virtual",
    )  # fmt: skip

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.queues: dict[BandQueue, None] = {}
        """Those where it has something queued, one per model."""
        self.virtual = 0.0
        self.queued = 0
        self.cost_s = 0.0
        """Predicted engine-seconds of what it has queued."""
        self.below_at = -math.inf
        """When its predicted wait was last within bounds."""
        self._rate = 0.0
        self._rate_at = -math.inf

    def drained(self, cost_s: float, now: float, tau: float) -> None:
        """So much of its queued work has gone into an engine."""
        self._rate = self.rate(now, tau) + cost_s / tau
        self._rate_at = now

    def rate(self, now: float, tau: float) -> float:
        """Engine-seconds per second that have gone lately, forgotten with time constant ``tau``."""
        if self._rate <= 0.0:
            return 0.0
        return self._rate * math.exp((self._rate_at - now) / tau)

    def charge(self, virtual_s: float) -> None:
        """It got so many engine-seconds over its weight; negative: fewer than it was charged."""
        self.virtual += virtual_s
        if virtual_s < 0.0:
            # Later places are found when an item surfaces; an earlier one has to be taken at once.
            for queue in self.queues:
                queue.advance(self.tenant)


class Accounts:
    """All tenants' accounts of one band."""

    def __init__(self) -> None:
        self.by_tenant: dict[str, Account] = {}
        self._forget_at = KEPT_ACCOUNTS
        self.present = 0.0
        """Virtual time at which the tenant that was served last began its request."""
        self.backlogged: dict[str, Account] = {}
        """Tenants with something queued."""

    def of(self, tenant: str) -> Account:
        """The tenant's account; a new tenant begins at the present."""
        account = self.by_tenant.get(tenant)
        if account is None:
            if len(self.by_tenant) >= self._forget_at:
                self._forget_idle()
            account = self.by_tenant[tenant] = Account(tenant)
            account.virtual = self.present
        return account

    def lift(self, tenant: str) -> Account:
        """The account of a tenant that comes: it is behind the present by a small lag at most."""
        account = self.by_tenant.get(tenant) or self.of(tenant)
        least = self.present - LAG_S
        if account.virtual < least:
            account.virtual = least
        return account

    def ahead_s(self, account: Account, weight: float) -> float:
        """Engine-seconds of this band that go before, or with, what a tenant has queued: all of its
        own, and what each other backlogged tenant gets meanwhile, if it has as much."""
        meanwhile = account.cost_s / weight
        if len(self.backlogged) > _COUNTED_TENANTS:
            return account.cost_s + meanwhile * (len(self.backlogged) - 1)
        return account.cost_s + sum(
            min(meanwhile, other.cost_s)
            for other in self.backlogged.values()
            if other is not account
        )

    def _forget_idle(self) -> None:
        """Bound the memory that tenants who come once leave behind."""
        self.by_tenant = {t: a for t, a in self.by_tenant.items() if a.queued}
        self._forget_at = max(KEPT_ACCOUNTS, 2 * len(self.by_tenant))


class _Flow:
    """One tenant's queue in one band of one model."""

    __slots__ = ("account", "heap", "item", "parked", "serial", "served_at", "size", "tenant")

    def __init__(self, tenant: str, account: Account) -> None:
        self.tenant = tenant
        self.account = account
        self.heap: list[tuple[float, int, int, ScheduledRequest]] = []
        self.item: _Item | None = None
        """Its one live item in the band's heap; another one is stale."""
        self.serial = -1
        """Of the live item."""
        self.parked = False
        self.served_at = -math.inf
        self.size = 0


class BandQueue:
    """The requests of one model and band.

    Args:
        accounts: of this band, shared by all models.
        by_deadline: order a tenant's requests by deadline; else by arrival.
        fair: order tenants by virtual time; else by their first request.
    """

    __slots__ = ("_by_deadline", "_fair", "_flows", "_heap", "accounts", "size")

    def __init__(self, accounts: Accounts, *, by_deadline: bool, fair: bool) -> None:
        self.accounts = accounts
        self._by_deadline = by_deadline
        self._fair = fair
        self._flows: dict[str, _Flow] = {}
        self._heap: list[_Item] = []
        self.size = 0

    def push(self, request: ScheduledRequest) -> None:
        """Queue a request."""
        tenant = request.info.tenant
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(tenant, self.accounts.of(tenant))
        elif not flow.size:
            # The idle one's account may have been forgotten.
            flow.account = self.accounts.of(tenant)
        account = flow.account
        if not account.queued:
            self._lift(account)
            self.accounts.backlogged[tenant] = account
        account.queued += 1
        account.cost_s += request.cost_s
        key = request.due if self._by_deadline else 0.0
        # A request that comes back may still have a stale item here: items never compare equal.
        heapq.heappush(flow.heap, (key, request.seq, next(_PUSHES), request))
        flow.size += 1
        self.size += 1
        account.queues[self] = None
        request.waits_in = self
        self._advance(flow)

    def remove(self, request: ScheduledRequest) -> None:
        """Take a request out (dispatched, cancelled, promoted); others are a no-op."""
        if request.waits_in is not self:
            return
        request.waits_in = None
        flow = self._flows[request.info.tenant]
        flow.size -= 1
        account = flow.account
        account.queued -= 1
        account.cost_s -= request.cost_s
        if not account.queued:
            account.cost_s = 0.0
            self.accounts.backlogged.pop(account.tenant, None)
        self.size -= 1
        # An empty flow stays until its item in the band's heap surfaces: a second item for the same
        # tenant would never leave, and each decision would move them all.
        if not flow.size:
            flow.heap.clear()
            account.queues.pop(self, None)
        elif len(flow.heap) > 64 and len(flow.heap) > 2 * flow.size:
            flow.heap = [item for item in flow.heap if item[3].waits_in is self]
            heapq.heapify(flow.heap)

    def head(self) -> ScheduledRequest | None:
        """The next request: of the tenant whose turn it is, the most urgent one."""
        heap = self._heap
        while heap:
            item = heap[0]
            flow = self._flows.get(item[2])
            if flow is None or flow.item is None or flow.serial != item[3]:
                heapq.heappop(heap)
                continue
            if not flow.size:
                heapq.heappop(heap)
                del self._flows[item[2]]
                continue
            first = self._first(flow)
            current = self._item(flow, first)
            if current != item:
                # Charged or refunded since, or its first request has gone: to its new place.
                flow.item = current
                heapq.heapreplace(heap, current)
                continue
            return first[3]
        return None

    def served(self, tenant: str, now: float) -> None:
        """One of the tenant's requests has just gone, or will at once."""
        flow = self._flows.get(tenant)
        if flow is not None:
            flow.served_at = now

    def waits_since(self, request: ScheduledRequest) -> float:
        """Since when others keep a request waiting: what its tenant's earlier requests took does
        not count."""
        return max(request.queued_at, self._flows[request.info.tenant].served_at)

    def park(self, tenant: str) -> None:
        """Pass over a tenant, whose requests may not go, until :meth:`unpark`."""
        flow = self._flows.get(tenant)
        if flow is not None:
            flow.parked, flow.item = True, None

    def unpark(self, tenant: str) -> None:
        """The tenant's requests may go again; nor did it bank credit meanwhile."""
        flow = self._flows.get(tenant)
        if flow is None or not flow.parked:
            return
        flow.parked = False
        if flow.size:
            self._lift(flow.account)
            self._list(flow)
        else:
            del self._flows[tenant]

    def advance(self, tenant: str) -> None:
        """The virtual time of a tenant that waits here has gone back."""
        self._advance(self._flows[tenant])

    def requests(self) -> Iterator[ScheduledRequest]:
        """All queued requests, in no order."""
        for flow in self._flows.values():
            yield from {r.seq: r for *_, r in flow.heap if r.waits_in is self}.values()

    # -- inside ---------------------------------------------------------------------------

    def _lift(self, account: Account) -> None:
        account.virtual = max(account.virtual, self.accounts.present - LAG_S)

    def _advance(self, flow: _Flow) -> None:
        """List a flow whose place is earlier than its item says (a later one finds itself)."""
        if not flow.parked and (flow.item is None or self._item(flow, flow.heap[0]) < flow.item):
            self._list(flow)

    def _list(self, flow: _Flow) -> None:
        flow.serial = next(_PUSHES)
        flow.item = self._item(flow, self._first(flow))
        heapq.heappush(self._heap, flow.item)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._flows):
            # In place: a caller may hold it.
            self._heap[:] = [f.item for f in self._flows.values() if f.item is not None]
            heapq.heapify(self._heap)

    def _first(self, flow: _Flow) -> tuple[float, int, int, ScheduledRequest]:
        waiting = flow.heap
        while waiting and waiting[0][3].waits_in is not self:
            heapq.heappop(waiting)
        if not waiting:
            raise RuntimeError(f"flow of tenant {flow.tenant!r} counts {flow.size}. This is a bug.")
        return waiting[0]

    def _item(self, flow: _Flow, first: tuple[float, int, int, ScheduledRequest]) -> _Item:
        if self._fair:
            return (flow.account.virtual, 0, flow.tenant, flow.serial)
        return (first[0], first[1], flow.tenant, flow.serial)


class ModelQueue:
    """The four bands of one model."""

    __slots__ = ("bands", "model")

    def __init__(
        self, model: str, accounts: dict[Band, Accounts], *, by_deadline: bool, fair: bool
    ) -> None:
        self.model = model
        self.bands = [
            BandQueue(accounts[band], by_deadline=by_deadline, fair=fair) for band in Band
        ]

    @property
    def size(self) -> int:
        """Queued requests of all bands."""
        bands = self.bands
        return bands[0].size + bands[1].size + bands[2].size + bands[3].size

    def requests(self) -> Iterator[ScheduledRequest]:
        """All queued requests, in no order."""
        for band in self.bands:
            yield from band.requests()
