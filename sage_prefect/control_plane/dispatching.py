"""What every event ends in: the queue is asked who may go, waits get their limits, timers are set.

The policy says who goes where; embedding and rerank calls of policies that merge have a lane of
their own. Here the two meet the books.
"""

from __future__ import annotations

import math
from itertools import islice
from random import Random
from typing import Any

from sage_prefect.control_plane.embedding_lane import EmbeddingLane
from sage_prefect.control_plane.events import (
    Action,
    Band,
    BandSpec,
    Dispatch,
    Done,
    Limits,
    SetTimer,
    TenantSpec,
)
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.outages import Outages
from sage_prefect.control_plane.request_book import RequestBook
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies import make_policy

_DETAILED_QUEUE = 1024
# More that have waited too long are told so by the next timer, which comes at once: streams go on.
_REFUSED_AT_ONCE = 1024
_MERGED_KINDS = ("embedding", "rerank")


class Dispatching:
    """Queue, lane, books and timer behind the control plane's events.

    Args: as of :class:`~sage_prefect.control_plane.manager.ControlPlaneManager`.
    """

    def __init__(self, policy: str, limits: Limits | None, remember: int, seed: int) -> None:
        self.ledger = Ledger()
        self.seed = seed
        self._rng = Random(seed)
        self._bands: dict[Band, BandSpec] = {}
        self._tenants: dict[str, TenantSpec] = {}
        self.policy = make_policy(policy, self.ledger, self._rng)
        self.ignored = 0
        """Events that made no sense; they changed nothing."""
        self._book = RequestBook(self.ledger, limits or Limits(), remember)
        self._lane = EmbeddingLane(self.ledger, self._book, self.policy)
        self._outages = Outages(self.ledger)
        self._now = -math.inf
        self._timer_at = math.inf

    # -- reading ---------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Requests that wait for an engine."""
        return self._book.queued

    @property
    def limits(self) -> Limits:
        """Caps of queue and retries in force."""
        return self._book.limits

    @property
    def queued_bytes(self) -> int:
        """Bytes of their bodies."""
        return self._book.queued_bytes

    @property
    def running(self) -> int:
        """Requests inside engines."""
        return self.ledger.in_flight() + self._lane.running

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """What was decided about a request and why; None when it is unknown or forgotten."""
        request = self._book.find(request_id)
        if request is None:
            return None
        inputs = self._lane.story(request_id) if request.request_id in self._book.live else {}
        return {**request.story(), **({"inputs": inputs} if inputs else {})}

    # -- who goes --------------------------------------------------------------------------

    def _pump(self, now: float) -> list[Action]:
        actions: list[Action] = []
        policy, book = self.policy, self._book
        if not book.queued and not self._lane.members:
            return actions
        if len(policy):
            while (picked := policy.next_dispatch(now)) is not None:
                request, entry = picked
                book.dequeue(request)
                if request.give_up_at <= now:
                    policy.left(request, entry, None, now)  # it had booked it there
                    actions.append(book.refuse_late(request, now))
                    continue
                actions.append(self._dispatch(request, entry, now))
        self._pump_lane(actions, now)
        return actions

    def _pump_lane(self, actions: list[Action], now: float) -> None:
        if self._lane.members:
            # A batch would take along what nobody wants any more.
            actions += self._give_up_late(now)
            actions += self._lane.pump(now)
        if self._lane.members or len(self.policy):
            self._arm(actions, now)

    def _dispatch(self, request: ScheduledRequest, entry: EngineEntry, now: float) -> Dispatch:
        """The policy has taken it out of its queue for this engine."""
        policy, engine, request_id = self.policy, entry.spec.name, request.info.request_id
        details = (engine, policy.name, policy.scores(request))
        request.notes.append((now, "dispatched", details))
        self.ledger.charge(engine, request_id)
        request.state = "running"
        request.engine = engine
        request.attempts += 1
        policy.load_changed(entry)
        if self._lane.engines:
            self._lane.load_changed(entry)
        return Dispatch(request_id, engine, request.attempts)

    def _settle(self, request: ScheduledRequest, done: Done | None = None) -> EngineEntry:
        if request.engine is None:
            raise RuntimeError(f"request {request.request_id!r} runs nowhere. This is a bug.")
        entry = self.ledger.settle(request.engine, request.info.request_id)
        self.policy.left(request, entry, done, self._now)
        self.policy.load_changed(entry)
        if self._lane.engines:
            self._lane.load_changed(entry)
        return entry

    def _in_engine(self, request_id: str) -> ScheduledRequest | None:
        """The request of this id, if it is inside an engine by itself, not in a batch."""
        request = self._book.live.get(request_id)
        if request is None or request.state != "running" or request_id in self._lane.members:
            return None
        return request

    # -- who waits -------------------------------------------------------------------------

    def _enqueue(self, request: ScheduledRequest, now: float) -> None:
        self._book.enqueue(request, now)
        self._queue(request, now)

    def _is_merged(self, request: ScheduledRequest) -> bool:
        return request.info.kind in _MERGED_KINDS and self.policy.merges

    def _queue(self, request: ScheduledRequest, now: float) -> None:
        """Into the queue that its kind has under the policy in force."""
        if self._is_merged(request):
            self._lane.add(request, now)
        else:
            self.policy.add(request, now)

    def _dequeue(self, request: ScheduledRequest) -> None:
        if request.request_id in self._lane:
            self._lane.remove(request, "given up")  # nothing of it is inside an engine
        else:
            self.policy.remove(request)
        self._book.dequeue(request)

    def _wait(self, request: ScheduledRequest, now: float, actions: list[Action]) -> None:
        """The request stays in the queue: note why, and until when."""
        self._book.limit_wait(request)
        is_out = self._outages.wait(request, self.limits.unavailable_wait_s)
        queued = self._book.queued
        in_lane = request.request_id in self._lane
        # Behind a long queue the engines say little, and the list is kilobytes a request.
        listed = (
            []
            if queued > _DETAILED_QUEUE
            else self._lane.candidates(request, now)
            if in_lane
            else self.policy.candidates(request)
        )
        request.note(
            now,
            "queued",
            why=f"no engine of this model {'is up' if is_out else 'has room'}",
            ahead=queued - 1,
            candidates=listed,
        )
        self._arm(actions, now)

    def _waiting_for(self, model: str) -> list[ScheduledRequest]:
        return self.policy.waiting_for(model) + self._lane.waiting_for(model)

    def _give_up_late(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in islice(self._book.overdue(now), _REFUSED_AT_ONCE):
            self._dequeue(request)
            actions.append(self._book.refuse_late(request, now))
        wait_s = self.limits.unavailable_wait_s
        for request in self._outages.given_up(now, wait_s, self._waiting_for):
            self._dequeue(request)
            actions.append(self._book.refuse_unavailable(request, now))
        return actions

    def _arm(self, actions: list[Action], now: float) -> None:
        """See to it that a timer comes for what changes by time alone."""
        wake = self.policy.wake_at(now) if len(self.policy) else math.inf
        wake = min(wake, self._lane.wake_at(), self._book.next_expiry())
        if self._book.queued:
            wake = min(wake, self._outages.next_end())
        if wake < self._timer_at:
            self._timer_at = wake
            actions.append(SetTimer(wake))

    def _ignore(self) -> list[Action]:
        self.ignored += 1
        return []
