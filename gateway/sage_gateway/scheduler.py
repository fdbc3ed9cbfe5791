"""The control plane under the wall clock: one ticket per request, actions carried out at once.

Everything runs in the event loop's thread; no step awaits, so that no event sees half a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sage_gateway.embedding_call import EmbeddingCall
from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.inline_task import Waiter, turn_of, waiter
from sage_gateway.recording import Recorder
from sage_gateway.upstream import Exchange
from sage_gateway.usage import Usage
from sage_gateway.vector_collection import VectorCollection
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    Arrival,
    BandsChanged,
    BandSpec,
    BatchDone,
    BatchFailed,
    Cancel,
    Dispatch,
    DispatchBatch,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    EngineSpec,
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
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.outages import MAY_SERVE
from sage_prefect.control_plane.strategies import check_policy

if TYPE_CHECKING:
    from sage_gateway.tracing import RequestTrace

log = logging.getLogger(__name__)

clock = time.monotonic
"""The driver's clock. The loop's own stands still within a turn and counts milliseconds (uvloop),
which is too coarse for waits and overheads."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one request gets of a batch's answer."""

    ticket: Ticket
    vectors: list[tuple[int, bytes]]
    """(input, its vector as JSON)"""
    prompt_tokens: int | None
    total_tokens: int | None


class Courier(Protocol):
    """Carries batches to engines and answers each by ``batch_done`` or ``batch_failed``."""

    def carry(self, action: DispatchBatch, tickets: Mapping[str, Ticket]) -> None:
        """Begin; returns at once."""

    def abort(self, batch_id: int, why: str) -> None:
        """End a batch's call, if it is under way."""


class Refused(Exception):  # noqa: N818 - an outcome
    """The control plane answered the request with an error."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message)
        self.reject = reject


class Ticket:
    """A request's place in the control plane, for the coroutine that serves it."""

    __slots__ = (
        "_waiter", "answered_at", "attempt", "batch", "batched_at", "batched_by", "call", "engine",
        "exchange", "failure", "gone", "info", "may_leave", "open", "rejection", "trace", "vectors",
    )  # fmt: skip

    def __init__(self, info: RequestInfo) -> None:
        self.info = info
        self.engine: str | None = None
        self.attempt = 0
        self.rejection: Reject | None = None
        self.gone = False
        """The client has left, or the request was aborted."""
        self.open = True
        """The control plane still counts it."""
        self.exchange: Exchange | None = None
        self.call: EmbeddingCall | None = None
        """What may be merged with others."""
        self.batch: int | None = None
        """The batch that is this call alone: it goes to the engine in the client's own bytes."""
        self.vectors: VectorCollection | None = None
        """What batches with inputs of other calls too have brought."""
        self.batched_by: bytes | None = None
        """Engine of the last such batch."""
        self.batched_at = self.answered_at = 0.0
        """When the first of them went out and the last came back."""
        self.failure: HttpError | None = None
        """What an engine said of its input."""
        self.may_leave = False
        """Another model may answer: it need not wait for engines to come back."""
        self.trace: RequestTrace | None = None
        self._waiter: Waiter | None = None

    @property
    def is_placed(self) -> bool:
        """Whether it has an engine, and nothing else has happened."""
        return self.engine is not None and self.rejection is None and not self.gone

    async def placed(self) -> str | None:
        """Wait for an engine and return its name; None: ``vectors`` are the answer.

        Raises:
            Refused: the control plane rejected the request.
            ClientGone: the client left meanwhile.
        """
        while True:
            if self.rejection is not None:
                raise Refused(self.rejection)
            if self.gone:
                raise ClientGone
            if self.engine is not None:
                return self.engine
            if self.vectors is not None and self.vectors.complete:
                return None
            waiting = self._waiter = waiter(turn_of(asyncio.get_running_loop()))
            await waiting

    def wake(self) -> None:
        waiting = self._waiter
        if waiting is not None:
            self._waiter = None
            if not waiting.done():
                waiting.set_result(None)


class Scheduler:
    """Feeds events to the manager and carries out its actions.

    Args:
        recorder: takes each step down; None: nothing is recorded.
    """

    def __init__(
        self,
        manager: ControlPlaneManager,
        loop: asyncio.AbstractEventLoop,
        recorder: Recorder | None = None,
    ) -> None:
        self.manager = manager
        self._loop = loop
        self._recorder = recorder
        self._tickets: dict[str, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._alone: dict[int, Ticket] = {}
        """Batches that are one whole call."""
        self.courier: Courier | None = None
        """Carries the other batches."""

    # -- a request's life -----------------------------------------------------------------

    def is_live(self, request_id: str) -> bool:
        """Whether a request of this id is queued or running."""
        return request_id in self._tickets

    def submit(self, info: RequestInfo, call: EmbeddingCall | None = None) -> Ticket:
        """Hand a request to the control plane; wait with :meth:`Ticket.placed`.

        Args:
            call: its body, if it has a ``merge_key``.
        """
        ticket = self._tickets[info.request_id] = Ticket(info)
        ticket.call = call
        self._feed(Arrival(info))
        return ticket

    def first_token(self, ticket: Ticket) -> None:
        self._feed(FirstToken(ticket.info.request_id))

    def progress(self, ticket: Ticket, chunks: int) -> None:
        self._feed(Progress(ticket.info.request_id, chunks))

    def done(self, ticket: Ticket, usage: Usage) -> None:
        """The engine has finished the answer."""
        if not ticket.open:
            return
        self._close(ticket)
        if ticket.batch is not None:
            self._alone.pop(ticket.batch, None)
            self._feed(BatchDone(ticket.batch, usage.prompt_tokens))
            return
        self._feed(
            Done(
                ticket.info.request_id,
                usage.prompt_tokens,
                usage.output_tokens,
                usage.cached_tokens,
            )
        )

    def failed(self, ticket: Ticket, cause: FailureCause, message: str, *, retryable: bool) -> None:
        """The attempt failed. Afterwards the ticket waits for another engine, or is refused."""
        engine, ticket.engine, ticket.exchange = ticket.engine, None, None
        batch, ticket.batch = ticket.batch, None
        if batch is not None:
            self._alone.pop(batch, None)
            if engine is not None:
                self._feed(BatchFailed(batch, engine, cause, retryable, False, message))
            return
        if not ticket.open or engine is None:
            return
        self._feed(Failed(ticket.info.request_id, engine, cause, retryable, message))

    def client_gone(self, ticket: Ticket) -> None:
        """The client left: out of the queue, or out of the engine."""
        if not ticket.open:
            return
        ticket.gone = True
        self._feed(Cancel(ticket.info.request_id))
        self._close(ticket)
        ticket.wake()

    def release(self, ticket: Ticket) -> None:
        """The serving coroutine ends: whatever is still open ends with it."""
        if ticket.open:
            self.client_gone(ticket)

    # -- batches --------------------------------------------------------------------------

    def batch_done(
        self, batch_id: int, engine: bytes, shares: list[Share], prompt_tokens: int | None
    ) -> None:
        """An engine has answered a batch: its requests get their parts of it."""
        for share in shares:
            ticket = share.ticket
            if not ticket.open:
                continue
            info = ticket.info
            if ticket.vectors is None:
                named = info.model if ticket.call is None else ticket.call.parsed["model"]
                ticket.vectors = VectorCollection(named, len(info.inputs))
            for index, vector in share.vectors:
                ticket.vectors.put(index, vector)
            ticket.vectors.used(share.prompt_tokens, share.total_tokens)
            ticket.batched_by, ticket.answered_at = engine, clock()
        self._feed(BatchDone(batch_id, prompt_tokens))
        for share in shares:
            ticket = share.ticket
            if ticket.open and ticket.vectors is not None and ticket.vectors.complete:
                self._close(ticket)
                ticket.wake()

    def batch_failed(
        self,
        batch_id: int,
        engine: str,
        cause: FailureCause,
        message: str,
        *,
        retryable: bool,
        bad_input: bool = False,
    ) -> None:
        """A batch failed; its requests wait for another one, or are refused."""
        self._feed(BatchFailed(batch_id, engine, cause, retryable, bad_input, message))

    # -- engines and configuration --------------------------------------------------------

    def add_engine(self, spec: EngineSpec) -> None:
        self._feed(EngineAdded(spec))

    def remove_engine(self, name: str, *, abort: bool = False) -> None:
        self._feed(EngineRemoved(name, abort))

    def report(self, engine: str, state: EngineState, detail: str = "") -> None:
        self._feed(EngineReport(engine, state, detail))

    def may_serve(self, model: str, without: Set[str] = frozenset()) -> bool:
        """Whether some engine of ``model`` takes requests, or soon will; those in ``without``
        do not count."""
        return any(
            entry.state in MAY_SERVE and name not in without
            for name, entry in self.manager.ledger.pool(model).items()
        )

    def send_elsewhere(self, engine: str) -> None:
        """An engine is away: requests that wait for its models alone, and that another model may
        answer, wait no longer."""
        entry = self.manager.ledger.get(engine)
        if entry is None:
            return
        away = {model for model in entry.spec.models if not self.may_serve(model)}
        for ticket in [t for t in self._tickets.values() if t.may_leave and t.engine is None]:
            if ticket.info.model in away:
                message = f"No engine for model {ticket.info.model!r} is available."
                ticket.rejection = Reject(
                    ticket.info.request_id, 503, "no_engine_available", message
                )
                self._feed(Cancel(ticket.info.request_id))
                self._close(ticket)
                ticket.wake()

    def set_limits(self, limits: Limits) -> None:
        """Caps of queue and retries."""
        self._feed(LimitsChanged(limits))

    def configure(self, bands: tuple[BandSpec, ...], tenants: tuple[TenantSpec, ...]) -> None:
        """Promises of the bands and shares of the tenants."""
        self._feed(BandsChanged(bands))
        self._feed(TenantsChanged(tenants))

    def set_policy(self, name: str) -> None:
        """Switch the policy; queued requests move over.

        Raises:
            UnknownNameError: the policy is not known.
        """
        self._feed(PolicyChanged(check_policy(name)))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- inside ---------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        now = clock()
        actions = self.manager.handle(event, now)
        if self._recorder is not None:
            self._recorder.record(event, now, actions)
        self._carry_out(actions)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, SetTimer):
                if self._timer is not None:
                    self._timer.cancel()
                wait = max(0.0, action.at - clock())
                self._timer = self._loop.call_later(wait, self._on_timer)
                continue
            if isinstance(action, DispatchBatch):
                self._carry_batch(action)
                continue
            if isinstance(action, AbortBatch):
                self._abort_batch(action)
                continue
            ticket = self._tickets.get(action.request_id)
            if ticket is None:
                continue
            if isinstance(action, Dispatch):
                ticket.engine = action.engine
                ticket.attempt = action.attempt
            elif isinstance(action, Reject):
                ticket.rejection = action
                self._close(ticket)
            elif isinstance(action, Abort) and ticket.exchange is not None:
                ticket.exchange.abort(FailureCause.INTERNAL, f"was given up ({action.reason})")
            ticket.wake()

    def _carry_batch(self, action: DispatchBatch) -> None:
        now = clock()
        for part in action.parts:
            for name in (part.request_id, *(name for name, _ in part.copies)):
                ticket = self._tickets.get(name)
                if ticket is not None and not ticket.batched_at:
                    ticket.batched_at = now
        ticket = self._tickets.get(action.parts[0].request_id)
        if ticket is not None and _is_whole(action, ticket):
            ticket.batch, ticket.engine = action.batch_id, action.engine
            ticket.attempt += 1
            self._alone[action.batch_id] = ticket
            ticket.wake()
            return
        if self.courier is None:
            raise RuntimeError("a batch was dispatched, and nobody carries any. This is a bug.")
        self.courier.carry(action, self._tickets)

    def _abort_batch(self, action: AbortBatch) -> None:
        why = f"was given up ({action.reason})"
        ticket = self._alone.get(action.batch_id)
        if ticket is None:
            if self.courier is not None:
                self.courier.abort(action.batch_id, why)
        elif ticket.exchange is not None:
            ticket.exchange.abort(FailureCause.INTERNAL, why)

    def _on_timer(self) -> None:
        self._timer = None
        self._feed(Timer())

    def _close(self, ticket: Ticket) -> None:
        ticket.open = False
        if ticket.batch is not None:
            self._alone.pop(ticket.batch, None)
        self._tickets.pop(ticket.info.request_id, None)


def _is_whole(action: DispatchBatch, ticket: Ticket) -> bool:
    """Whether a batch is all of one call and nothing else."""
    inputs = 1 if ticket.call is None else len(ticket.info.inputs)
    own = ticket.info.request_id
    return len(action.parts) == inputs and all(
        part.request_id == own and not part.copies for part in action.parts
    )
