"""EmbeddingLane: the embedding and rerank calls of policies that merge, in batches.

A request is *running* while some input of it is inside an engine, else *queued*: one whose batch
came back with others still to go is queued again. Batches inside engines outlive a change of
policy; what is queued and not begun moves. Everything here costs O(log n) per batch and request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sage_prefect.control_plane.accelerator_sharing import AcceleratorSharing
from sage_prefect.control_plane.accelerator_split import AcceleratorSplit
from sage_prefect.control_plane.admission import retry_after_s
from sage_prefect.control_plane.age_heap import AgeHeap
from sage_prefect.control_plane.events import (
    AbortBatch,
    Action,
    Band,
    BatchDone,
    BatchFailed,
    DispatchBatch,
)
from sage_prefect.control_plane.executor_pool import ExecutorPool, Formed
from sage_prefect.control_plane.executors.embedding_executor import EmbeddingExecutor
from sage_prefect.control_plane.lane_member import LaneMember
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.refusals import batch_failure_reply
from sage_prefect.control_plane.request_book import RequestBook
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.standing_wait import Flow, StandingWait
from sage_prefect.control_plane.strategies.base import Refusal, SchedulingPolicy
from sage_prefect.control_plane.tenant_gate import TenantGate

_NOTED_BATCHES = 32  # a request of thousands of inputs goes in many; explain tells the first ones


@dataclass(slots=True, eq=False)
class _OpenBatch:
    """A batch inside an engine."""

    executor: EmbeddingExecutor
    engine: str
    members: list[tuple[LaneMember, float]]
    """Its requests, each with what its tenant was charged."""
    policy: SchedulingPolicy
    """Has the accounts that were charged."""


class EmbeddingLane:
    """Queue, batches and books of the requests that executors place.

    Args:
        ledger: engines; the lane enters its batches there.
        book: all requests.
        policy: the policy in force: promises, shares and accounts.
    """

    def __init__(self, ledger: Ledger, book: RequestBook, policy: SchedulingPolicy) -> None:
        self.policy = policy
        self.running = 0
        """Requests with inputs inside engines."""
        self._ledger = ledger
        self._book = book
        self._now = -math.inf
        self._split = AcceleratorSplit(ledger)
        sites = AcceleratorSharing(ledger, self._split, self._is_crowded)
        self._executors = ExecutorPool(ledger, sites)
        self.engines = self._executors.of_engine
        """Names of those that executors know."""
        self.members: dict[str, LaneMember] = {}
        """Queued and running requests by id."""
        self._batches: dict[int, _OpenBatch] = {}
        self._ages: AgeHeap[LaneMember] = AgeHeap(self._is_here, self.__len__)
        self._waits = StandingWait()
        self._gate: TenantGate[LaneMember] = TenantGate(self._most_running)
        self._fresh: list[LaneMember] = []
        """Joined, or came back, since the last look for batches."""
        self._queued_s: dict[Flow, float] = {}

    def __len__(self) -> int:
        """Queued and running requests."""
        return len(self.members)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.members

    def story(self, request_id: str) -> dict[str, Any]:
        """For ``explain``: where the inputs of a request are; empty for one that is not here."""
        member = self.members.get(request_id)
        return {} if member is None else member.executor.story(request_id)

    def candidates(self, request: ScheduledRequest, now: float) -> list[dict[str, object]]:
        """For ``explain``: the engines that a request may go to."""
        return self._executors.of(request.info.model).candidates(now)

    # -- requests -------------------------------------------------------------------------

    def add(self, request: ScheduledRequest, now: float) -> None:
        """A request joins; the book counts it as queued."""
        self._now = now
        self.policy.promise(request, now)
        executor = self._executors.of(request.info.model)
        self._split.asked(executor.model, executor.tokens(request), now)
        member = LaneMember(request, executor, 0.0, since=now)
        self.members[request.request_id] = member
        self._fresh.append(member)
        if self._gate.come(member):
            self._enter(member)
        else:
            request.note(now, "held back", why="its tenant is at its limit of running requests")

    def admit(self, request: ScheduledRequest, now: float) -> Refusal | None:
        """Whether a new request, which no engine took at once, may stay."""
        allowed = self.policy.allowed_wait_s(request, now)
        if allowed == math.inf:
            return None
        flow = (request.info.tenant, request.band)
        wait = self._executors.of(request.info.model).wait_s(request.band)
        if not self._waits.is_too_long(flow, wait, allowed, now):
            return None
        return Refusal(
            f"The request would wait about {wait:.1f} s, more than its band allows.",
            retry_after_s(wait - allowed, self.policy.rng.random()),
        )

    def remove(self, request: ScheduledRequest, reason: str) -> list[Action]:
        """A request is not wanted any more; the book still counts it as it was.

        Returns:
            AbortBatch for each batch that nobody waits for now. Their books are closed.
        """
        member = self.members[request.request_id]
        orphaned = member.executor.remove(request.request_id) if member.inside else ()
        self._forget(member)
        return [action for batch_id in orphaned for action in self._abort(batch_id, reason)]

    def waiting_for(self, model: str) -> list[ScheduledRequest]:
        """The queued requests of one model, in order of arrival."""
        return self._queued(lambda member: member.request.info.model == model)

    def surrender(self) -> list[ScheduledRequest]:
        """Give away the queued requests of which nothing has been answered, in order of arrival:
        another policy takes over. The rest ends here."""
        left = self._queued(lambda member: not member.begun)
        for request in left:
            self.remove(request, "policy changed")
        return left

    def limits_changed(self) -> None:
        """Tenants may have more, or fewer, requests running."""
        for member in self._gate.reopen(self._is_here):
            self._enter(member)

    # -- engines --------------------------------------------------------------------------

    def engine_changed(self, entry: EngineEntry) -> None:
        """An engine came, left, or changed its state or specification."""
        self._executors.engine_changed(entry)
        for model in entry.spec.models:
            self._executors.forget_idle(model)

    def load_changed(self, entry: EngineEntry) -> None:
        """An engine took or finished a call."""
        self._executors.load_changed(entry)

    # -- batches --------------------------------------------------------------------------

    def pump(self, now: float) -> list[Action]:
        """Send all batches that can go now."""
        self._now = now
        actions: list[Action] = []
        if self._split.is_due(now):
            self._lend(now)
        self._executors.wake(now)
        while (formed := self._executors.next_batch(now)) is not None:
            actions.append(self._send(formed, now))
        for member in self._fresh:
            if self._is_here(member) and member.request.is_queued:
                self._grow_old(member)
        self._fresh.clear()
        return actions

    def batch_ended(self, event: BatchDone | BatchFailed, now: float) -> list[Action] | None:
        """An engine has answered a batch, or failed; None: the batch is not known there."""
        self._now = now
        batch = self._batches.get(event.batch_id)
        if batch is None or (isinstance(event, BatchFailed) and event.engine != batch.engine):
            return None
        if isinstance(event, BatchDone):
            actions: list[Action] = []
            self._answered(batch, event, now)
        else:
            actions = self._failed(batch, event, now)
        for member, _ in batch.members:
            member.batches.discard(event.batch_id)
            if self.members.get(member.request.request_id) is member and not member.batches:
                actions += self._queue_again(member, now)
        self._executors.touch(batch.executor.model)
        self._executors.forget_idle(batch.executor.model)
        return actions

    # -- time -----------------------------------------------------------------------------

    def wake_at(self) -> float:
        """When something changes by time alone; infinity: never."""
        return min(self._ages.next_at(), self._executors.wake_at())

    def tick(self, now: float) -> None:
        """Move up by one band what has waited for long."""
        self._now = now
        for member in self._ages.old(now):
            request = member.request
            limit = self.policy.age_limit_s(request.band)
            if limit is None or now < member.since + limit:
                self._grow_old(member)  # the limit was changed
                continue
            self._uncount_cost(member)
            request.band = Band(request.band - 1)
            request.note(now, "moved up", band=request.band.label)
            member.executor.promote(request.request_id, request.band, now)
            self._executors.touch(request.info.model)
            member.since = now
            self._grow_old(member)

    # -- inside ---------------------------------------------------------------------------

    def _enter(self, member: LaneMember) -> None:
        """Its executor gets it, and may send it from now on."""
        request, executor = member.request, member.executor
        flow = (request.info.tenant, request.band)
        member.cost_s = executor.cost_s(request)
        queued_s = self._queued_s.get(flow, 0.0) + member.cost_s
        self._queued_s[flow] = queued_s
        debt_s = self.policy.debt_s(request, queued_s)
        executor.add(request, request.band, request.due, debt_s)
        self._executors.touch(executor.model)

    def _send(self, formed: Formed, now: float) -> DispatchBatch:
        executor, batch_id, engine, parts = formed
        entry = self._ledger.charge_batch(engine, batch_id)
        if entry.spec.accelerator is not None:
            self._split.sent(entry.spec.accelerator, executor.alone_s(batch_id), now)
        batch = _OpenBatch(executor, engine, [], self.policy)
        self._batches[batch_id] = batch
        for name, seconds in executor.charges(batch_id).items():
            member = self.members[name]
            request = member.request
            if request.state == "queued":
                self._book.dequeue(request)
                self.running += 1
                request.state = "running"
                request.dispatched_at = now
                request.attempts += 1
            request.engine = engine
            member.batches.add(batch_id)
            batch.members.append((member, seconds))
            self._uncount_cost(member)
            self.policy.charge(request, seconds)
            if len(request.notes) <= _NOTED_BATCHES:
                request.note(
                    now,
                    "batched",
                    engine=engine,
                    batch=batch_id,
                    inputs=len(parts),
                    policy=self.policy.name,
                )
        self._changed(entry)
        return DispatchBatch(batch_id, engine, parts)

    def _answered(self, batch: _OpenBatch, event: BatchDone, now: float) -> None:
        tokens = event.prompt_tokens
        for member, _ in batch.members:
            member.begun = True
        for name in batch.executor.batch_done(event.batch_id, now, tokens):
            request = self.members[name].request
            self._forget(self.members[name])
            self._book.drained.count(now)
            request.note(now, "done")
            self._book.end(request, "done")
        self._close(event.batch_id)

    def _failed(self, batch: _OpenBatch, event: BatchFailed, now: float) -> list[Action]:
        outcome = batch.executor.batch_failed(
            event.batch_id,
            now,
            event.retryable,
            event.bad_input,
            attempts=1 + self._book.limits.max_retries,
            only_elsewhere=True,
        )
        actions: list[Action] = []
        for member, seconds in batch.members:
            batch.policy.charge(member.request, -seconds)
            if len(member.request.notes) <= 2 * _NOTED_BATCHES:
                member.request.note(
                    now,
                    "batch failed",
                    engine=event.engine,
                    batch=event.batch_id,
                    cause=event.cause.value,
                    bad_input=event.bad_input,
                    why=event.message,
                )
            if not event.bad_input:
                member.request.tried |= {event.engine}
        self._close(event.batch_id)
        for name in outcome.failed:
            request = self.members[name].request
            self._forget(self.members[name])
            self._book.end(request, "failed")
            actions.append(batch_failure_reply(request.request_id, event))
        for batch_id in outcome.orphaned:
            actions += self._abort(batch_id, "its requests have failed")
        return actions

    def _queue_again(self, member: LaneMember, now: float) -> list[Action]:
        """Nothing of it is inside an engine now, and some of it is still to go."""
        request = member.request
        self.running -= 1
        self._book.enqueue(request, now)
        if self._ledger.pool(request.info.model):
            self._book.limit_wait(request)
            self._fresh.append(member)
            return []
        aborted = self.remove(request, "no engine is left")
        self._book.dequeue(request)
        return [*aborted, self._book.refuse_unavailable(request, now)]

    def _abort(self, batch_id: int, reason: str) -> list[Action]:
        """End a batch that nobody waits for: its engine is free again."""
        batch = self._batches.get(batch_id)
        if batch is None:
            return []
        batch.executor.batch_failed(batch_id, self._now, True, False)
        for member, seconds in batch.members:
            batch.policy.charge(member.request, -seconds)
            member.batches.discard(batch_id)
        self._close(batch_id)
        self._executors.touch(batch.executor.model)
        return [AbortBatch(batch_id, batch.engine, reason)]

    def _close(self, batch_id: int) -> None:
        batch = self._batches.pop(batch_id)
        self._changed(self._ledger.settle_batch(batch.engine, batch_id))

    def _changed(self, entry: EngineEntry) -> None:
        self.policy.load_changed(entry)
        self._executors.load_changed(entry)

    def _forget(self, member: LaneMember) -> None:
        if member.request.state == "running":
            self.running -= 1
        self._uncount_cost(member)
        del self.members[member.request.request_id]
        entered = self._gate.leave(member, self._is_here)
        if entered is not None:
            self._enter(entered)

    def _uncount_cost(self, member: LaneMember) -> None:
        flow = (member.request.info.tenant, member.request.band)
        left = self._queued_s.get(flow, 0.0) - member.cost_s
        member.cost_s = 0.0
        if left > 1e-12:
            self._queued_s[flow] = left
        else:
            self._queued_s.pop(flow, None)

    def _grow_old(self, member: LaneMember) -> None:
        limit = self.policy.age_limit_s(member.request.band)
        if limit is not None:
            self._ages.push(member, member.since + limit)

    def _most_running(self, tenant: str) -> int | None:
        return self.policy.most_running(tenant)

    def _is_here(self, member: LaneMember) -> bool:
        return self.members.get(member.request.request_id) is member

    def _queued(self, wanted: Callable[[LaneMember], bool]) -> list[ScheduledRequest]:
        found = [
            member.request
            for member in self.members.values()
            if member.request.state == "queued" and wanted(member)
        ]
        return sorted(found, key=lambda request: request.seq)

    def _lend(self, now: float) -> None:
        """Lend accelerators by what is asked for, and tell the policy what it may use again."""
        speeds = {}
        for model in self._split.models():
            speed = self._executors.speed(model)
            if speed is not None:
                speeds[model] = speed
        for entry in self._split.turn(now, speeds):
            self.policy.engine_changed(entry)

    def _is_crowded(self, llm: EngineEntry) -> bool:
        return self.policy.is_crowded(llm, self._now)
