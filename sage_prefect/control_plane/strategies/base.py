"""What a scheduling policy must do.

A policy owns two decisions: which queued request goes next, and into which engine. The manager
owns the rest (admission, caps, expiry, retries, the books). The manager calls; a policy never
calls back, does no I/O, reads no clock, and raises nothing. After every event the manager asks
:meth:`SchedulingPolicy.next_dispatch` until it answers None.

Each call should cost O(log n) in requests and in engines: a policy that walks over all that is
pending makes overload worse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest


class SchedulingPolicy(ABC):
    """Base of all policies. ``ledger`` is shared with the manager and is read only here."""

    name: ClassVar[str]

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @abstractmethod
    def add(self, request: ScheduledRequest, now: float) -> None:
        """Queue a request: a new one, one to retry, or one from the policy before this."""

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
        """An engine came, left, changed its state or window, took or finished a request."""

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
