"""ControlPlaneManager: the state machine. Events in, actions out; time is an argument.

Every arrival ends in exactly one of: done, failed, rejected, cancelled. Events from the outside
world never raise: one that makes no sense (unknown request or engine, duplicate, late) changes
nothing and is counted in ``ignored``. A ``RuntimeError`` from here is a bug in SAGE.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from sage_prefect.control_plane.drain_rate import DrainRate
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
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.outages import MAY_SERVE, Outages, may_serve
from sage_prefect.control_plane.refusals import failure_reply, unavailable, unknown_model
from sage_prefect.control_plane.scheduled_request import ScheduledRequest, State
from sage_prefect.control_plane.strategies import POLICIES, make_policy

_DETAILED_QUEUE = 1024
# More that have waited too long are told so by the next timer, which comes at once: streams go on.
_REFUSED_AT_ONCE = 1024
_UNAVAILABLE_RETRY_S = 2  # a supervised engine is usually back within seconds
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
        self.limits = limits or Limits()
        self.seed = seed
        self._rng = Random(seed)
        self._bands: dict[Band, BandSpec] = {}
        self._tenants: dict[str, TenantSpec] = {}
        self.policy = make_policy(policy, self.ledger, self._rng)
        self.ignored = 0
        """Events that made no sense; they changed nothing."""
        self.queued_bytes = 0
        self._queued_of: dict[str, int] = {}
        self._remember = remember
        self._now = -math.inf
        self._seq = 0
        self._live: dict[str, ScheduledRequest] = {}
        self._ended: OrderedDict[str, ScheduledRequest] = OrderedDict()
        self._expiry: list[tuple[float, int, str]] = []
        self._timer_at = math.inf
        self._drained = DrainRate()
        self._outages = Outages(self.ledger)
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
        return len(self.policy)

    @property
    def running(self) -> int:
        """Requests inside engines."""
        return self.ledger.in_flight()

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """What was decided about a request and why; None when it is unknown or forgotten."""
        request = self._live.get(request_id) or self._ended.get(request_id)
        return None if request is None else request.story()

    # -- requests -------------------------------------------------------------------------

    def _on_arrival(self, event: Arrival, now: float) -> list[Action]:
        info = event.request
        if info.request_id in self._live:
            return self._ignore()
        info = bounded_request(info)
        pool = self.ledger.pool(info.model)
        request = ScheduledRequest(info, self._seq, now)
        self._seq += 1
        self._live[info.request_id] = request
        if not pool:
            return [
                self._refuse(
                    request, 404, "model_not_found", unknown_model(self.ledger, info.model)
                )
            ]
        if not may_serve(pool) and not self._may_wait_for_return(info.model):
            return [self._refuse_unavailable(request)]
        if info.deadline is not None and info.deadline <= now:
            return [
                self._refuse(
                    request, 504, "deadline_exceeded", "The request's deadline had passed already."
                )
            ]
        self._enqueue(request, now)
        actions = self._pump(now)
        if self._is_queued(request):
            limits = self.limits
            over_count = len(self.policy) > limits.max_queued_requests
            over_bytes = self.queued_bytes > limits.max_queued_bytes
            tenant = self._tenants.get(info.tenant)
            cap = tenant.max_queued if tenant is not None else None
            over_tenant = cap is not None and self._queued_of[info.tenant] > cap
            if over_count or over_bytes or over_tenant:
                self._dequeue(request)
                what = (
                    f"{limits.max_queued_requests} requests"
                    if over_count
                    else f"{limits.max_queued_bytes} bytes"
                    if over_bytes
                    else f"{cap} requests of tenant {info.tenant!r}"
                )
                actions.append(
                    self._refuse(
                        request,
                        429,
                        "queue_full",
                        f"The gateway's queue is full ({what}).",
                        retry_after=self._drained.retry_after(len(self.policy), now),
                    )
                )
            elif (refusal := self.policy.admit(request, now)) is not None:
                self._dequeue(request)
                actions.append(
                    self._refuse(
                        request,
                        429,
                        "overloaded",
                        refusal.message,
                        retry_after=refusal.retry_after_s,
                    )
                )
            else:
                self._wait(request, now, actions)
        return actions

    def _on_first_token(self, event: FirstToken, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None or request.state != "running":
            return self._ignore()
        if request.first_token_at is not None or request.engine is None:
            return self._ignore()
        request.first_token_at = now
        self.ledger.answers(request.engine)
        return self._pump(now) if self.policy.first_token(request, now) else []

    def _on_progress(self, event: Progress, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None or request.state != "running" or not is_count(event.chunks):
            return self._ignore()
        request.chunks += event.chunks
        return self._pump(now) if self.policy.progressed(request, event.chunks, now) else []

    def _on_done(self, event: Done, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None or request.state != "running" or request.engine is None:
            return self._ignore()
        event = bounded_done(event)
        self._settle(request, event).answered = True
        self._drained.count(now)
        request.note(
            now, "done", prompt_tokens=event.prompt_tokens, output_tokens=event.output_tokens
        )
        self._end(request, "done")
        return self._pump(now)

    def _on_failed(self, event: Failed, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None or request.state != "running" or request.engine != event.engine:
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
        left = request.attempts - request.spared <= self.limits.max_retries
        if event.retryable and left and self._may_do_better(request, event.cause):
            request.engine = None
            request.first_token_at = None
            request.state = "queued"
            self._enqueue(request, now)
            actions = self._pump(now)
            if self._is_queued(request):
                self._wait(request, now, actions)
            return actions
        self._end(request, "failed")
        return [failure_reply(event), *self._pump(now)]

    def _on_cancel(self, event: Cancel, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None:
            return self._ignore()
        request.note(now, "cancelled", while_=request.state)
        actions: list[Action] = []
        if request.state == "queued":
            self._dequeue(request)
        elif request.engine is not None:
            actions.append(Abort(event.request_id, request.engine, "client gone"))
            self._settle(request)
        self._end(request, "cancelled")
        return actions + self._pump(now)

    # -- engines --------------------------------------------------------------------------

    def _on_engine_added(self, event: EngineAdded, now: float) -> list[Action]:
        spec = event.spec
        if not spec.name or not spec.models or not is_measurable(spec):
            return self._ignore()
        known = self.ledger.get(spec.name)
        dropped = set(known.spec.models) - set(spec.models) if known is not None else set()
        self.policy.engine_changed(self.ledger.add(spec))
        self._note_outages({*spec.models, *dropped}, now)
        return self._pump(now) + self._refuse_orphans(dropped)

    def _on_engine_removed(self, event: EngineRemoved, now: float) -> list[Action]:
        entry = self.ledger.get(event.engine)
        if entry is None:
            return self._ignore()
        actions: list[Action] = []
        if event.abort:
            # The driver answers each Abort with Failed or Done; the books close then.
            actions += [Abort(r, event.engine, "engine removed") for r in sorted(entry.running)]
        removed = self.ledger.remove(event.engine)
        if removed is not None:
            self.policy.engine_changed(removed)
            self._note_outages(removed.spec.models, now)
            actions += self._refuse_orphans(set(removed.spec.models))
            self._arm(actions, now)
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
        self.policy.engine_changed(changed)
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

    def _refuse_orphans(self, models: set[str]) -> list[Action]:
        """Requests that wait for a model which no engine serves any more."""
        refused: list[Action] = []
        for model in sorted(models):
            if self.ledger.pool(model):
                continue
            for request in self.policy.waiting_for(model):
                self._dequeue(request)
                refused.append(self._refuse_unavailable(request))
        return refused

    # -- configuration and time -----------------------------------------------------------

    def _on_policy_changed(self, event: PolicyChanged, now: float) -> list[Action]:
        if event.policy not in POLICIES:
            return self._ignore()
        before, after = self.policy, make_policy(event.policy, self.ledger, self._rng)
        after.configure(self._bands, self._tenants)
        # Before what is queued: it counts against the tenants' limits.
        for request in self._live.values():
            entry = self.ledger.get(request.engine or "")
            if request.state == "running" and entry is not None:
                after.adopt(request, entry, now)
        for request in before.pending():
            request.note(now, "policy changed", policy=event.policy)
            request.waits_in = None
            after.add(request, now)
        self.policy = after
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
        return self._pump(now)

    def _on_batch(self, event: BatchDone | BatchFailed, now: float) -> list[Action]:
        return self._ignore()

    def _on_limits_changed(self, event: LimitsChanged, now: float) -> list[Action]:
        if not are_limits(event.limits):
            return self._ignore()
        self.limits = event.limits
        return []

    def _on_timer(self, event: Timer, now: float) -> list[Action]:
        # Also a timer that fired early is spent: what is left is armed again below.
        self._timer_at = math.inf
        actions: list[Action] = []
        while self._expiry and self._expiry[0][0] <= now and len(actions) < _REFUSED_AT_ONCE:
            _, seq, request_id = heapq.heappop(self._expiry)
            request = self._live.get(request_id)
            if request is None or request.seq != seq or request.state != "queued":
                continue
            if request.give_up_at <= now:
                self._dequeue(request)
                actions.append(self._refuse_late(request, now))
            elif (end := self._end_of_wait(request)) <= now:
                self._dequeue(request)
                actions.append(self._refuse_unavailable(request))
            elif end < request.give_up_at:  # the limit has risen meanwhile
                heapq.heappush(self._expiry, (end, seq, request_id))
        for model, since in self._outages.ended_waits(now):
            for request in self.policy.waiting_for(model):
                if request.queued_at <= since:
                    self._dequeue(request)
                    actions.append(self._refuse_unavailable(request))
        if len(self.policy):
            self.policy.tick(now)
            return actions + self._pump(now)
        self._arm(actions, now)
        return actions

    # -- inside ---------------------------------------------------------------------------

    def _pump(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if not len(self.policy):
            return actions
        policy = self.policy
        while (picked := policy.next_dispatch(now)) is not None:
            request, entry = picked
            info = request.info
            self._uncount(info)
            if request.give_up_at <= now:
                policy.left(request, entry, None, now)  # it had booked it there
                actions.append(self._refuse_late(request, now))
                continue
            request.note(
                now,
                "dispatched",
                engine=entry.spec.name,
                policy=self.policy.name,
                scores=self.policy.scores(request),
            )
            self.ledger.charge(entry.spec.name, info.request_id)
            request.state = "running"
            request.engine = entry.spec.name
            request.attempts += 1
            policy.load_changed(entry)
            actions.append(Dispatch(info.request_id, entry.spec.name, request.attempts))
        self._arm(actions, now)
        return actions

    @staticmethod
    def _is_queued(request: ScheduledRequest) -> bool:
        return request.state == "queued"

    def _enqueue(self, request: ScheduledRequest, now: float) -> None:
        info = request.info
        self.queued_bytes += info.body_bytes
        self._queued_of[info.tenant] = self._queued_of.get(info.tenant, 0) + 1
        request.queued_at = now
        request.give_up_at = math.inf
        self.policy.add(request, now)

    def _dequeue(self, request: ScheduledRequest) -> None:
        self.policy.remove(request)
        self._uncount(request.info)

    def _uncount(self, info: RequestInfo) -> None:
        self.queued_bytes -= info.body_bytes
        left = self._queued_of[info.tenant] - 1
        if left:
            self._queued_of[info.tenant] = left
        else:
            del self._queued_of[info.tenant]

    def _wait(self, request: ScheduledRequest, now: float, actions: list[Action]) -> None:
        """The request stays in the queue: note why, and until when."""
        request.give_up_at = request.queued_at + self.limits.queue_timeout_s
        if request.info.deadline is not None:
            request.give_up_at = min(request.give_up_at, request.info.deadline)
        name = request.info.request_id
        heapq.heappush(self._expiry, (request.give_up_at, request.seq, name))
        out = self._outages.since(request.info.model) <= now
        if out:
            heapq.heappush(self._expiry, (self._end_of_wait(request), request.seq, name))
        request.note(
            now,
            "queued",
            why=f"no engine of this model {'is up' if out else 'has room'}",
            ahead=len(self.policy) - 1,
            # Behind a long queue the engines say little, and the list is kilobytes a request.
            candidates=(
                self.policy.candidates(request) if len(self.policy) <= _DETAILED_QUEUE else []
            ),
        )
        self._arm(actions, now)

    def _end_of_wait(self, request: ScheduledRequest) -> float:
        """Until when it waits for an engine to come back; infinity: its model is not out."""
        since = self._outages.since(request.info.model)
        return max(since, request.queued_at) + self.limits.unavailable_wait_s

    def _arm(self, actions: list[Action], now: float) -> None:
        """See to it that a timer comes for what changes by time alone."""
        wake = math.inf
        if len(self.policy):
            wake = min(self.policy.wake_at(now), self._outages.next_end())
        if wake < self._timer_at:
            self._timer_at = wake
            actions.append(SetTimer(wake))
        while self._expiry:
            at, seq, request_id = self._expiry[0]
            request = self._live.get(request_id)
            if request is not None and request.seq == seq and request.state == "queued":
                if at < self._timer_at:
                    self._timer_at = at
                    actions.append(SetTimer(at))
                return
            heapq.heappop(self._expiry)

    def _settle(self, request: ScheduledRequest, done: Done | None = None) -> EngineEntry:
        if request.engine is None:
            raise RuntimeError(f"request {request.request_id!r} runs nowhere. This is a bug.")
        entry = self.ledger.settle(request.engine, request.info.request_id)
        self.policy.left(request, entry, done, self._now)
        self.policy.load_changed(entry)
        return entry

    def _end(self, request: ScheduledRequest, state: State) -> None:
        request.state = state
        request_id = request.info.request_id
        del self._live[request_id]
        if self._remember:
            self._ended[request_id] = request
            if len(self._ended) > self._remember:
                self._ended.popitem(last=False)

    def _refuse(
        self,
        request: ScheduledRequest,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
    ) -> Reject:
        request.note(self._now, "rejected", status=status, code=code)
        self._end(request, "rejected")
        return Reject(request.info.request_id, status, code, message, retry_after)

    def _refuse_late(self, request: ScheduledRequest, now: float) -> Reject:
        return self._refuse(
            request,
            503,
            "queue_timeout",
            f"No engine took the request within {now - request.queued_at:.1f} s.",
            retry_after=self._drained.retry_after(len(self.policy), now),
        )

    def _refuse_unavailable(self, request: ScheduledRequest) -> Reject:
        text = unavailable(self.ledger, request.info.model)
        return self._refuse(
            request, 503, "no_engine_available", text, retry_after=_UNAVAILABLE_RETRY_S
        )

    def _ignore(self) -> list[Action]:
        self.ignored += 1
        return []
