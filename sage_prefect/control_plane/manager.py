"""ControlPlaneManager: the state machine. Events in, actions out; time is an argument.

Every arrival ends in exactly one of: done, failed, rejected, cancelled. Events from the outside
world never raise: one that makes no sense (unknown request or engine, duplicate, late) changes
nothing and is counted in ``ignored``. A ``RuntimeError`` from here is a bug in SAGE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from random import Random
from typing import Any

from sage_prefect.control_plane.embedding_lane import EmbeddingLane
from sage_prefect.control_plane.event_bounds import (
    FAR,
    are_limits,
    bounded_done,
    bounded_request,
    is_count,
    is_measurable,
    is_promise,
    is_share,
)
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    BatchDone,
    BatchFailed,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    LimitsChanged,
    PolicyChanged,
    Progress,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.outages import MAY_SERVE, Outages, may_serve
from sage_prefect.control_plane.refusals import failure_reply, unknown_model
from sage_prefect.control_plane.request_book import RequestBook
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies import POLICIES, make_policy

_DETAILED_QUEUE = 1024
# More that have waited too long are told so by the next timer, which comes at once: streams go on.
_REFUSED_AT_ONCE = 1024
_MERGED_KINDS = ("embedding", "rerank")
_SERVING = (EngineState.READY, EngineState.WARMING)


class ControlPlaneManager:
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

    # -- the one door in ------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event at time ``now`` (seconds, monotonic) and say what to do, in order."""
        # A clock that steps back, or shows no time, stands still here: no wait is ever negative.
        if self._now < now <= FAR:
            self._now = now
        elif self._now == -math.inf:
            self._now = 0.0
        return self._handlers[type(event)](event, self._now)

    # -- reading --------------------------------------------------------------------------

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

    # -- requests -------------------------------------------------------------------------

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
        self._enqueue(request, now)
        actions = self._pump(now)
        if not request.is_queued:
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
        if request is None:
            return self._ignore()
        if request.first_token_at is not None:
            return self._ignore()
        request.first_token_at = now
        self.ledger.answers(request.engine or "")
        return self._pump(now) if self.policy.first_token(request, now) else []

    def _on_progress(self, event: Progress, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None or not is_count(event.chunks):
            return self._ignore()
        request.chunks += event.chunks
        return self._pump(now) if self.policy.progressed(request, event.chunks, now) else []

    def _on_done(self, event: Done, now: float) -> list[Action]:
        request = self._in_engine(event.request_id)
        if request is None:
            return self._ignore()
        event = bounded_done(event)
        self._settle(request, event).answered = True
        self._book.drained.count(now)
        request.note(
            now, "done", prompt_tokens=event.prompt_tokens, output_tokens=event.output_tokens
        )
        self._book.end(request, "done")
        return self._pump(now)

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

    # -- engines --------------------------------------------------------------------------

    def _on_engine_added(self, event: EngineAdded, now: float) -> list[Action]:
        spec = event.spec
        if not spec.name or not spec.models or not is_measurable(spec):
            return self._ignore()
        known = self.ledger.get(spec.name)
        dropped = set(known.spec.models) - set(spec.models) if known is not None else set()
        self._engine_changed(self.ledger.add(spec))
        self._note_outages({*spec.models, *dropped}, now)
        return self._pump(now) + self._refuse_orphans(dropped, now)

    def _on_engine_removed(self, event: EngineRemoved, now: float) -> list[Action]:
        entry = self.ledger.get(event.engine)
        if entry is None:
            return self._ignore()
        actions: list[Action] = []
        if event.abort:
            # The driver answers each Abort with Failed or Done; the books close then.
            why = "engine removed"
            actions += [Abort(r, event.engine, why) for r in sorted(entry.running)]
            actions += [AbortBatch(b, event.engine, why) for b in sorted(entry.batches)]
        removed = self.ledger.remove(event.engine)
        if removed is not None:
            self._engine_changed(removed)
            self._note_outages(removed.spec.models, now)
            actions += self._refuse_orphans(set(removed.spec.models), now)
            actions += self._pump(now)
        return actions

    def _on_engine_report(self, event: EngineReport, now: float) -> list[Action]:
        entry = self.ledger.get(event.engine)
        if entry is None or entry.leaving:
            return self._ignore()
        if event.state in _SERVING:
            entry.answered = True
        if event.gauges is not None:
            self.policy.reported(entry, event.gauges, now)
        changed = self.ledger.set_state(event.engine, event.state)
        if changed is None:
            return []
        self._engine_changed(changed)
        self._note_outages(changed.spec.models, now)
        return self._pump(now)

    def _note_outages(self, models: Iterable[str], now: float) -> None:
        self._outages.note(sorted(models), now, self.limits.unavailable_wait_s)

    def _may_wait_for_return(self, model: str) -> bool:
        return self.limits.unavailable_wait_s > 0 and self._outages.may_end(model)

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

    def _engine_changed(self, entry: EngineEntry) -> None:
        self.policy.engine_changed(entry)
        self._lane.engine_changed(entry)

    def _load_changed(self, entry: EngineEntry) -> None:
        self.policy.load_changed(entry)
        self._lane.load_changed(entry)

    def _refuse_orphans(self, models: set[str], now: float) -> list[Action]:
        """Requests that wait for a model which no engine serves any more."""
        refused: list[Action] = []
        for model in sorted(models):
            if self.ledger.pool(model):
                continue
            for request in self._waiting_for(model):
                self._dequeue(request)
                refused.append(self._book.refuse_unavailable(request, now))
        return refused

    def _waiting_for(self, model: str) -> list[ScheduledRequest]:
        return self.policy.waiting_for(model) + self._lane.waiting_for(model)

    # -- configuration and time -----------------------------------------------------------

    def _on_policy_changed(self, event: PolicyChanged, now: float) -> list[Action]:
        if event.policy not in POLICIES:
            return self._ignore()
        before, after = self.policy, make_policy(event.policy, self.ledger, self._rng)
        after.configure(self._bands, self._tenants)
        # Before what is queued: it counts against the tenants' limits.
        for request in self._book.live.values():
            entry = self.ledger.get(request.engine or "")
            in_lane = request.request_id in self._lane
            if request.state == "running" and entry is not None and not in_lane:
                after.adopt(request, entry, now)
        waiting = [*before.pending(), *self._lane.surrender()]
        self.policy = self._lane.policy = after
        for request in sorted(waiting, key=lambda request: request.seq):
            request.note(now, "policy changed", policy=event.policy)
            request.waits_in = None
            self._queue(request, now)
        return self._pump(now)

    def _on_bands_changed(self, event: BandsChanged, now: float) -> list[Action]:
        if not all(is_promise(spec) for spec in event.bands):
            return self._ignore()
        self._bands.update({spec.band: spec for spec in event.bands})
        self.policy.configure(self._bands, self._tenants)
        return self._pump(now)

    def _on_tenants_changed(self, event: TenantsChanged, now: float) -> list[Action]:
        if not all(is_share(spec) for spec in event.tenants):
            return self._ignore()
        self._tenants = {spec.name: spec for spec in event.tenants}
        self.policy.configure(self._bands, self._tenants)
        self._lane.limits_changed()
        return self._pump(now)

    def _on_batch(self, event: BatchDone | BatchFailed, now: float) -> list[Action]:
        actions = self._lane.batch_ended(event, now)
        return self._ignore() if actions is None else actions + self._pump(now)

    def _on_limits_changed(self, event: LimitsChanged, now: float) -> list[Action]:
        if not are_limits(event.limits):
            return self._ignore()
        self._book.limits = event.limits
        return []

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

    # -- inside ---------------------------------------------------------------------------

    def _pump(self, now: float) -> list[Action]:
        actions: list[Action] = []
        policy, book = self.policy, self._book
        if len(policy):
            while (picked := policy.next_dispatch(now)) is not None:
                request, entry = picked
                info = request.info
                book.dequeue(request)
                if request.give_up_at <= now:
                    policy.left(request, entry, None, now)  # it had booked it there
                    actions.append(book.refuse_late(request, now))
                    continue
                request.note(
                    now,
                    "dispatched",
                    engine=entry.spec.name,
                    policy=policy.name,
                    scores=policy.scores(request),
                )
                self.ledger.charge(entry.spec.name, info.request_id)
                request.state = "running"
                request.engine = entry.spec.name
                request.attempts += 1
                self._load_changed(entry)
                actions.append(Dispatch(info.request_id, entry.spec.name, request.attempts))
        if len(self._lane):
            # A batch would take along what nobody wants any more.
            actions += self._give_up_late(now)
            actions += self._lane.pump(now)
        if len(policy) or len(self._lane):
            self._arm(actions, now)
        return actions

    def _in_engine(self, request_id: str) -> ScheduledRequest | None:
        """The request of this id, if it is inside an engine by itself, not in a batch."""
        request = self._book.live.get(request_id)
        if request is None or request.state != "running" or request_id in self._lane:
            return None
        return request

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

    def _enqueue(self, request: ScheduledRequest, now: float) -> None:
        self._book.enqueue(request, now)
        self._queue(request, now)

    def _queue(self, request: ScheduledRequest, now: float) -> None:
        """Into the queue that its kind has under the policy in force."""
        if self.policy.merges and request.info.kind in _MERGED_KINDS:
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

    def _arm(self, actions: list[Action], now: float) -> None:
        """See to it that a timer comes for what changes by time alone."""
        wake = self.policy.wake_at(now) if len(self.policy) else math.inf
        wake = min(wake, self._lane.wake_at(), self._book.next_expiry())
        if self._book.queued:
            wake = min(wake, self._outages.next_end())
        if wake < self._timer_at:
            self._timer_at = wake
            actions.append(SetTimer(wake))

    def _settle(self, request: ScheduledRequest, done: Done | None = None) -> EngineEntry:
        if request.engine is None:
            raise RuntimeError(f"request {request.request_id!r} runs nowhere. This is a bug.")
        entry = self.ledger.settle(request.engine, request.info.request_id)
        self.policy.left(request, entry, done, self._now)
        self._load_changed(entry)
        return entry

    def _ignore(self) -> list[Action]:
        self.ignored += 1
        return []
