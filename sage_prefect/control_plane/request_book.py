"""The books of all requests: who lives, what is queued, until when each waits, how each ended."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator

from sage_prefect.control_plane.drain_rate import DrainRate
from sage_prefect.control_plane.events import Limits, Reject, RequestInfo
from sage_prefect.control_plane.ledger import Ledger
from sage_prefect.control_plane.refusals import unavailable
from sage_prefect.control_plane.scheduled_request import ScheduledRequest, State

_UNAVAILABLE_RETRY_S = 2  # a supervised engine is usually back within seconds


class RequestBook:
    """Requests from arrival to end; times in seconds.

    Args:
        ledger: the engines, for what refusals say.
        limits: caps of the queue.
        remember: how many ended requests :meth:`find` still knows.
    """

    def __init__(self, ledger: Ledger, limits: Limits, remember: int) -> None:
        self.limits = limits
        self.live: dict[str, ScheduledRequest] = {}
        """Queued and running ones by id."""
        self.drained = DrainRate()
        self.queued_bytes = 0
        self.queued = 0
        """Requests that wait for an engine."""
        self._ledger = ledger
        self._queued_of: dict[str, int] = {}
        self._remember = remember
        self._seq = 0
        self._ended: OrderedDict[str, ScheduledRequest] = OrderedDict()
        # A request that is queued again has a second item here: items never compare equal.
        self._pushed = 0
        self._expiry: list[tuple[float, int, ScheduledRequest]] = []

    def find(self, request_id: str) -> ScheduledRequest | None:
        """A request that lives or is remembered."""
        return self.live.get(request_id) or self._ended.get(request_id)

    def open(self, info: RequestInfo, now: float) -> ScheduledRequest:
        """A request has arrived; its id is not among the live ones."""
        request = ScheduledRequest(info, self._seq, now, queued_at=now)
        self._seq += 1
        self.live[info.request_id] = request
        return request

    # -- the queue ------------------------------------------------------------------------

    def enqueue(self, request: ScheduledRequest, now: float) -> None:
        """It waits for an engine from now on."""
        info = request.info
        request.state = "queued"
        request.queued_at = now
        request.give_up_at = math.inf
        self.queued += 1
        self.queued_bytes += info.body_bytes
        self._queued_of[info.tenant] = self._queued_of.get(info.tenant, 0) + 1

    def dequeue(self, request: ScheduledRequest) -> None:
        """It waits no more."""
        info = request.info
        self.queued -= 1
        self.queued_bytes -= info.body_bytes
        left = self._queued_of[info.tenant] - 1
        if left:
            self._queued_of[info.tenant] = left
        else:
            del self._queued_of[info.tenant]

    def over_cap(self, request: ScheduledRequest, tenant_cap: int | None) -> str | None:
        """Which cap the queue is over with this request in it; None: it is within all."""
        limits, tenant = self.limits, request.info.tenant
        if self.queued > limits.max_queued_requests:
            return f"{limits.max_queued_requests} requests"
        if self.queued_bytes > limits.max_queued_bytes:
            return f"{limits.max_queued_bytes} bytes"
        if tenant_cap is not None and self._queued_of[tenant] > tenant_cap:
            return f"{tenant_cap} requests of tenant {tenant!r}"
        return None

    # -- time -----------------------------------------------------------------------------

    def limit_wait(self, request: ScheduledRequest) -> None:
        """Give it up when the queue's time limit or its deadline has passed."""
        request.give_up_at = request.queued_at + self.limits.queue_timeout_s
        if request.info.deadline is not None:
            request.give_up_at = min(request.give_up_at, request.info.deadline)
        self._pushed += 1
        heapq.heappush(self._expiry, (request.give_up_at, self._pushed, request))

    def next_expiry(self) -> float:
        """When the next queued request is to be given up; infinity: none."""
        expiry = self._expiry
        while expiry:
            at, _, request = expiry[0]
            if request.state == "queued" and request.give_up_at == at:
                return at
            heapq.heappop(expiry)
        return math.inf

    def overdue(self, now: float) -> Iterator[ScheduledRequest]:
        """The queued requests whose time is over; the caller takes them out of their queue."""
        while self._expiry and self._expiry[0][0] <= now:
            _, _, request = heapq.heappop(self._expiry)
            if request.state == "queued" and request.give_up_at <= now:
                yield request

    # -- ends -----------------------------------------------------------------------------

    def end(self, request: ScheduledRequest, state: State) -> None:
        """It is over; it is in no queue and no engine."""
        request.state = state
        request_id = request.info.request_id
        del self.live[request_id]
        if self._remember:
            self._ended[request_id] = request
            if len(self._ended) > self._remember:
                self._ended.popitem(last=False)

    def refuse(
        self,
        request: ScheduledRequest,
        now: float,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
    ) -> Reject:
        """End it with an error that no engine gave."""
        request.note(now, "rejected", status=status, code=code)
        self.end(request, "rejected")
        return Reject(request.info.request_id, status, code, message, retry_after)

    def refuse_full(self, request: ScheduledRequest, cap: str, now: float) -> Reject:
        """End it: the queue is over a cap."""
        return self.refuse(
            request,
            now,
            429,
            "queue_full",
            f"The gateway's queue is full ({cap}).",
            retry_after=self.drained.retry_after(self.queued, now),
        )

    def refuse_late(self, request: ScheduledRequest, now: float) -> Reject:
        """End it: it has waited too long."""
        return self.refuse(
            request,
            now,
            503,
            "queue_timeout",
            f"No engine took the request within {now - request.queued_at:.1f} s.",
            retry_after=self.drained.retry_after(self.queued, now),
        )

    def refuse_unavailable(self, request: ScheduledRequest, now: float) -> Reject:
        """End it: no engine of its model takes requests."""
        text = unavailable(self._ledger, request.info.model)
        return self.refuse(
            request, now, 503, "no_engine_available", text, retry_after=_UNAVAILABLE_RETRY_S
        )
