"""ControlPlaneManager: the state machine. Events in, actions out; time is an argument.

Every arrival ends in exactly one of: done, failed, rejected, cancelled. Events from the outside
world never raise: one that makes no sense (unknown request or engine, duplicate, late) changes
nothing and is counted in ``ignored``. A ``RuntimeError`` from here is a bug in SAGE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sage_prefect.control_plane.engine_events import EngineEvents
from sage_prefect.control_plane.event_bounds import (
    FAR,
    bounded_batch,
    bounded_done,
    bounded_request,
    is_progress,
)
from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    BandsChanged,
    BatchDone,
    BatchFailed,
    Cancel,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    LimitsChanged,
    PolicyChanged,
    Progress,
    TenantsChanged,
    Timer,
)
from sage_prefect.control_plane.outages import MAY_SERVE, may_serve
from sage_prefect.control_plane.refusals import failure_reply, unknown_model
from sage_prefect.control_plane.scheduled_request import ScheduledRequest


class ControlPlaneManager(EngineEvents):
    """Admission, queue, dispatch and books of all requests.

    Args:
        policy: name of the scheduling policy.
        limits: caps of queue and retries.
        remember: how many ended requests :meth:`explain` still knows.
        seed: of the policies' random numbers: equal seeds and events give equal decisions.

    Raises:
        UnknownNameError: the policy is not known.
    """

    def __init__(
        self,
        policy: str = "fifo",
        limits: Limits | None = None,
        *,
        remember: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, limits, remember, seed)
        self._handlers: dict[type, Callable[[Any, float], list[Action]]] = {
            Arrival: self._on_arrival,
            FirstToken: self._on_first_token,
            Progress: self._on_progress,
            Done: self._on_done,
            Failed: self._on_failed,
            Cancel: self._on_cancel,
            BatchDone: self._on_batch,
            BatchFailed: self._on_batch,
            EngineReport: self._on_engine_report,
            EngineAdded: self._on_engine_added,
            EngineRemoved: self._on_engine_removed,
            PolicyChanged: self._on_policy_changed,
            LimitsChanged: self._on_limits_changed,
            BandsChanged: self._on_bands_changed,
            TenantsChanged: self._on_tenants_changed,
            Timer: self._on_timer,
        }

    # -- the one door in -------------------------------------------------------------------

    def handle(self, event: Event, now: float | int) -> list[Action]:
        """Take an event at time ``now`` (seconds, monotonic) and say what to do, in order."""
        # A clock that steps back, or shows no time, stands still here: no wait is ever negative.
        if self._now < now <= FAR and now >= -FAR:
            self._now = float(now)
        elif self._now == -math.inf:
            self._now = 0.0
        return self._handlers[type(event)](event, self._now)

    # -- requests --------------------------------------------------------------------------

    def _on_arrival(self, event: Arrival, now: float) -> list[Action]:
        info, book = event.request, self._book
        if info.request_id in book.live:
            return self._ignore()
        info = bounded_request(info)
        pool = self.ledger.pool(info.model)
        request = book.open(info, now)
        if not pool:
            message = unknown_model(self.ledger, info.model)
            return [book.refuse(request, now, 404, "model_not_found", message)]
        if not may_serve(pool) and not self._may_wait_for_return(info.model):
            return [book.refuse_unavailable(request, now)]
        if info.deadline is not None and info.deadline <= now:
            message = "The request's deadline had passed already."
            return [book.refuse(request, now, 504, "deadline_exceeded", message)]
        if self._is_merged(request):
            self._enqueue(request, now)
        elif (entry := self.policy.arrive(request, now)) is not None:
            dispatched: list[Action] = [self._dispatch(request, entry, now)]
            if self._lane.members:
                self._pump_lane(dispatched, now)
            return dispatched
        else:
            book.enqueue(request, now)
        actions = self._pump(now)
        if request.state != "queued":
            return actions
        tenant = self._tenants.get(info.tenant)
        cap = book.over_cap(request, None if tenant is None else tenant.max_queued)
        if cap is not None:
            self._dequeue(request)
            return [*actions, book.refuse_full(request, cap, now)]
        admit = self._lane.admit if info.request_id in self._lane else self.policy.admit
        refusal = admit(request, now)
        if refusal is not None:
            self._dequeue(request)
            actions.append(
                book.refuse(
                    request,
                    now,
                    429,
                    "overloaded",
                    refusal.message,
                    retry_after=refusal.retry_after_s,
                )
            )
            return actions
        self._wait(request, now, actions)
        return actions

    def _on_first_token(self, event: FirstToken, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None or request.first_token_at is not None:
            return self._ignore()
        request.first_token_at = now
        self.ledger.answers(request.engine or "")
        return self._pump(now) if self.policy.first_token(request, now) else []

    def _on_progress(self, event: Progress, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None or not is_progress(event):
            return self._ignore()
        request.chunks += event.chunks
        return self._pump(now) if self.policy.progressed(request, event.chunks, now) else []

    def _on_done(self, event: Done, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None:
            return self._ignore()
        event = bounded_done(event)
        self._settle(request, event).answered = True
        book = self._book
        book.drained.count(now)
        request.notes.append((now, "done", (event.prompt_tokens, event.output_tokens)))
        book.end(request, "done")
        return self._pump(now) if book.queued or self._lane.members else []

    def _on_failed(self, event: Failed, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None or request.engine != event.engine:
            return self._ignore()
        entry = self._settle(request)
        request.tried = request.tried | {event.engine}
        if event.cause is FailureCause.OVERLOADED:
            self.policy.refused(entry, now)
            # It is not the request's fault: the first time costs it none of its retries.
            request.spared = 1
        request.note(
            now, "attempt failed", engine=event.engine, cause=event.cause.value, why=event.message
        )
        left = request.attempts - request.spared <= self._book.limits.max_retries
        if event.retryable and left and self._may_do_better(request, event.cause):
            request.engine = None
            request.first_token_at = None
            self._enqueue(request, now)
            actions = self._pump(now)
            if request.is_queued:
                self._wait(request, now, actions)
            return actions
        self._book.end(request, "failed")
        return [failure_reply(event), *self._pump(now)]

    def _on_cancel(self, event: Cancel, now: float) -> list[Action]:
        request = self._book.live.get(event.request_id)
        if request is None:
            return self._ignore()
        request.note(now, "cancelled", while_=request.state)
        actions: list[Action] = []
        if event.request_id in self._lane:
            was_queued = request.is_queued
            actions += self._lane.remove(request, "client gone")
            if was_queued:
                self._book.dequeue(request)
        elif request.is_queued:
            self._dequeue(request)
        elif request.engine is not None:
            actions.append(Abort(event.request_id, request.engine, "client gone"))
            self._settle(request)
        self._book.end(request, "cancelled")
        return actions + self._pump(now)

    def _on_batch(self, event: BatchDone | BatchFailed, now: float) -> list[Action]:
        sane = bounded_batch(event)
        actions = None if sane is None else self._lane.batch_ended(sane, now)
        return self._ignore() if actions is None else actions + self._pump(now)

    # -- time ------------------------------------------------------------------------------

    def _on_timer(self, event: Timer, now: float) -> list[Action]:
        # Also a timer that fired early is spent: what is left is armed again below.
        self._timer_at = math.inf
        actions = self._give_up_late(now)
        if len(self.policy):
            self.policy.tick(now)
        self._lane.tick(now)
        if self._book.queued or len(self._lane):
            return actions + self._pump(now)
        self._arm(actions, now)
        return actions

    # -- inside ----------------------------------------------------------------------------

    def _may_do_better(self, request: ScheduledRequest, cause: FailureCause) -> bool:
        """Whether a failed request may be sent again, to another engine or after an outage."""
        model = request.info.model
        if any(
            entry.state in MAY_SERVE and name not in request.tried
            for name, entry in self.ledger.pool(model).items()
        ):
            return True
        # What may have broken the engine must not be what meets it when it comes back.
        return cause is FailureCause.CONNECT and self._may_wait_for_return(model)
