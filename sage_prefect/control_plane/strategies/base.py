"""What a scheduling policy must do.

A policy owns two decisions: which queued request goes next, and into which engine. The manager
owns the rest (admission, caps, expiry, retries, the books). The manager calls; a policy never
calls back, does no I/O, reads no clock, and raises nothing. After every event the manager asks
:meth:`SchedulingPolicy.next_dispatch` until it answers None.

Each call should cost O(log n) in requests and in engines: a policy that walks over all that is
pending makes overload worse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from sage_prefect.control_plane.events import Band, BandSpec, Done, EngineGauges, TenantSpec
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest, Told


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not admitted, and when to try again."""

    message: str
    retry_after_s: int


class SchedulingPolicy(ABC):
    """Base of all policies. ``ledger`` is shared with the manager and is read only here.

    Args:
        rng: the only source of chance, so that a replay decides alike.
    """

    name: ClassVar[str]
    merges: ClassVar[bool] = False
    """Whether inputs of several embedding calls may share one call of an engine. A plain load
    balancer sends each call as it came."""

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        self.ledger = ledger
        self.rng = rng

    @abstractmethod
    def add(self, request: ScheduledRequest, now: float) -> None:
        """Queue a request: a new one, one to retry, or one from the policy before this."""

    def arrive(self, request: ScheduledRequest, now: float) -> EngineEntry | None:
        """A new request: the engine that it goes to at once, or None: it is queued.

        It ends as :meth:`add` and one :meth:`next_dispatch` would; where nothing waits a policy may
        spare itself the queue.
        """
        self.add(request, now)
        return None

    @abstractmethod
    def remove(self, request: ScheduledRequest) -> None:
        """Forget a queued request (cancelled, expired, refused)."""

    @abstractmethod
    def next_dispatch(self, now: float) -> tuple[ScheduledRequest, EngineEntry] | None:
        """Take the next request out of the queue with the engine it goes to, or None.

        The engine serves the request's model and has room. None means that no queued request
        can go anywhere now.
        """

    @abstractmethod
    def engine_changed(self, entry: EngineEntry) -> None:
        """An engine came, left, or changed its state or specification."""

    def load_changed(self, entry: EngineEntry) -> None:
        """An engine took or finished a request."""
        self.engine_changed(entry)

    @abstractmethod
    def pending(self) -> Iterator[ScheduledRequest]:
        """All queued requests in order of arrival (policy switch: O(n log n) is fine here)."""

    @abstractmethod
    def waiting_for(self, model: str) -> list[ScheduledRequest]:
        """The queued requests of one model, in order of arrival."""

    @abstractmethod
    def __len__(self) -> int:
        """How many requests are queued."""

    @abstractmethod
    def candidates(self, request: ScheduledRequest) -> list[dict[str, Any]]:
        """For ``explain``: engines looked at for this request, each with its score."""

    def scores(self, request: ScheduledRequest) -> Told:
        """The engines that the last dispatch was chosen from, each with its score (lower first)."""
        return list, ()

    # -- optional: what a policy that merges says of embedding and rerank calls ------------

    def promise(self, request: ScheduledRequest, now: float) -> None:
        """Set the band that is in force, the promises and by when the request should begin."""
        request.band = request.info.band
        request.due = math.inf if request.info.deadline is None else request.info.deadline

    def age_limit_s(self, band: Band) -> float | None:
        """After this wait a request of ``band`` moves up by one; None: never."""
        return None

    def allowed_wait_s(self, request: ScheduledRequest, now: float) -> float:
        """A new request that would wait for longer is refused; infinity: it never is."""
        return math.inf

    def most_running(self, tenant: str) -> int | None:
        """Calls of a tenant that may be placed at once, beside its LLM requests; None: any."""
        return None

    def debt_s(self, request: ScheduledRequest, queued_s: float) -> float:
        """Engine-seconds, over weight, by which the request's tenant is ahead of its band once what
        it has queued (``queued_s``) is served; 0: it is not."""
        return 0.0

    def charge(self, request: ScheduledRequest, seconds: float) -> None:
        """The request's tenant has got so many engine-seconds; negative: gives them back."""
        return None

    def is_crowded(self, entry: EngineEntry, now: float) -> bool:
        """Whether an engine has no time to spare for another one on its accelerator."""
        return False

    # -- optional: what a policy may learn from -------------------------------------------

    def configure(self, bands: Mapping[Band, BandSpec], tenants: Mapping[str, TenantSpec]) -> None:
        """Promises of the bands and shares of the tenants, at the start and when they change."""
        return None

    def admit(self, request: ScheduledRequest, now: float) -> Refusal | None:
        """Whether a new request, which no engine took at once, may stay in the queue."""
        return None

    def adopt(self, request: ScheduledRequest, entry: EngineEntry, now: float) -> None:
        """A request was sent to an engine by another policy, and is still there."""
        return None

    def first_token(self, request: ScheduledRequest, now: float) -> bool:
        """The first token has come; whether a queued request may be able to go now."""
        return False

    def progressed(self, request: ScheduledRequest, chunks: int, now: float) -> bool:
        """So many chunks have come since the last time; whether a queued request may go now."""
        return False

    def left(
        self, request: ScheduledRequest, entry: EngineEntry, done: Done | None, now: float
    ) -> None:
        """The request has ended in its engine; ``done`` is None unless it was answered."""
        return None

    def refused(self, entry: EngineEntry, now: float) -> None:
        """An engine had no room for a request, which has left it (:meth:`left` was called)."""
        return None

    def reported(self, entry: EngineEntry, gauges: EngineGauges, now: float) -> None:
        """What an engine says of itself."""
        return None

    def tick(self, now: float) -> None:
        """Time has passed: the time that :meth:`wake_at` named, or later."""
        return None

    def wake_at(self, now: float) -> float:
        """When to be called again if nothing happens; infinity: never."""
        return math.inf
