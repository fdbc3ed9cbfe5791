"""Who is next: bands, inside them tenants by virtual time, inside these requests by deadline.

Virtual time is engine-seconds over the tenant's weight, so that one currency serves chat and
embedding, short and long (VTC, arXiv 2401.00588, charges tokens instead). A tenant that comes back
is lifted to the present less a small lag: it cannot bank credit while idle. Removal is lazy
everywhere: a heap's stale top is dropped when it surfaces. Each step costs O(log n).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

LAG_S = 1.0
"""Engine-seconds (over weight) by which a returning tenant may be behind the present."""

_PUSHES = itertools.count()


class Account:
    """A tenant's virtual time in one band, over all models."""

    __slots__ = ("queued", "tenant", "virtual")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.virtual = 0.0
        self.queued = 0


class Accounts:
    """All tenants' accounts of one band."""

    def __init__(self) -> None:
        self.by_tenant: dict[str, Account] = {}
        self.present = 0.0
        """Virtual time of the tenant that was served last."""

    def of(self, tenant: str) -> Account:
        """The tenant's account; a new tenant begins at the present."""
        account = self.by_tenant.get(tenant)
        if account is None:
            account = self.by_tenant[tenant] = Account(tenant)
            account.virtual = self.present
        return account

    def forget_idle(self, keep: int = 10_000) -> None:
        """Bound the memory that tenants who come once leave behind."""
        if len(self.by_tenant) > keep:
            self.by_tenant = {t: a for t, a in self.by_tenant.items() if a.queued}


class _Flow:
    """One tenant's queue in one band of one model."""

    __slots__ = ("account", "heap", "listed", "size")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.listed = False
        """It has its one item in the band's heap."""
        self.heap: list[tuple[float, int, int, ScheduledRequest]] = []
        self.size = 0


class BandQueue:
    """The requests of one model and band.

    Args:
        accounts: of this band, shared by all models.
        by_deadline: order a tenant's requests by deadline; else by arrival.
        fair: order tenants by virtual time; else all requests share one flow.
    """

    __slots__ = ("_by_deadline", "_fair", "_flows", "_heap", "accounts", "size")

    def __init__(self, accounts: Accounts, *, by_deadline: bool, fair: bool) -> None:
        self.accounts = accounts
        self._by_deadline = by_deadline
        self._fair = fair
        self._flows: dict[str, _Flow] = {}
        self._heap: list[tuple[float, str]] = []
        self.size = 0

    def push(self, request: ScheduledRequest) -> None:
        """Queue a request."""
        tenant = request.info.tenant if self._fair else ""
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(self.accounts.of(tenant))
        account = flow.account
        if not account.queued:
            account.virtual = max(account.virtual, self.accounts.present - LAG_S)
        account.queued += 1
        if not flow.listed:
            flow.listed = True
            heapq.heappush(self._heap, (account.virtual, tenant))
        key = request.due if self._by_deadline else 0.0
        # A request that comes back may still have a stale item here: items never compare equal.
        heapq.heappush(flow.heap, (key, request.seq, next(_PUSHES), request))
        flow.size += 1
        self.size += 1
        request.waits_in = self

    def remove(self, request: ScheduledRequest) -> None:
        """Take a request out (dispatched, cancelled, promoted); others are a no-op."""
        if request.waits_in is not self:
            return
        request.waits_in = None
        tenant = request.info.tenant if self._fair else ""
        flow = self._flows[tenant]
        flow.size -= 1
        flow.account.queued -= 1
        self.size -= 1
        # An empty flow stays until its item in the band's heap surfaces: a second item for the same
        # tenant would never leave, and each decision would move them all.
        if not flow.size:
            flow.heap.clear()
        elif len(flow.heap) > 64 and len(flow.heap) > 2 * flow.size:
            flow.heap = [item for item in flow.heap if item[3].waits_in is self]
            heapq.heapify(flow.heap)

    def head(self) -> ScheduledRequest | None:
        """The next request: of the tenant with the least virtual time, the most urgent one."""
        heap = self._heap
        while heap:
            virtual, tenant = heap[0]
            flow = self._flows[tenant]
            if not flow.size:
                heapq.heappop(heap)
                del self._flows[tenant]
                continue
            if virtual != flow.account.virtual:
                # Charged or refunded since: to its new place.
                heapq.heapreplace(heap, (flow.account.virtual, tenant))
                continue
            waiting = flow.heap
            while waiting and waiting[0][3].waits_in is not self:
                heapq.heappop(waiting)
            if waiting:
                return waiting[0][3]
            raise RuntimeError(f"flow of tenant {tenant!r} counts {flow.size}. This is a bug.")
        return None

    def requests(self) -> Iterator[ScheduledRequest]:
        """All queued requests, in no order."""
        for flow in self._flows.values():
            yield from {r.seq: r for *_, r in flow.heap if r.waits_in is self}.values()


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
