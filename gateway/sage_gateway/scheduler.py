"""The control plane under the wall clock: one ticket per request, actions carried out at once.

Everything runs in the event loop's thread; no step awaits, so that no event sees half a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from sage_gateway.errors import ClientGone
from sage_gateway.recording import Recorder
from sage_gateway.upstream import Exchange
from sage_gateway.usage import Usage
from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    BandsChanged,
    BandSpec,
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
from sage_prefect.control_plane.strategies import check_policy

log = logging.getLogger(__name__)

clock = time.monotonic
"""The driver's clock. The loop's own stands still within a turn and counts milliseconds (uvloop),
which is too coarse for waits and overheads."""


class Refused(Exception):  # noqa: N818 - an outcome
    """The control plane answered the request with an error."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message)
        self.reject = reject


class Ticket:
    """A request's place in the control plane, for the coroutine that serves it."""

    __slots__ = ("_waiter", "attempt", "engine", "exchange", "gone", "info", "open", "rejection")

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
        self._waiter: asyncio.Future[None] | None = None

    async def placed(self) -> str:
        """Wait for an engine and return its name.

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
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


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

    # -- a request's life -----------------------------------------------------------------

    def is_live(self, request_id: str) -> bool:
        """Whether a request of this id is queued or running."""
        return request_id in self._tickets

    def submit(self, info: RequestInfo) -> Ticket:
        """Hand a request to the control plane; wait with :meth:`Ticket.placed`."""
        ticket = self._tickets[info.request_id] = Ticket(info)
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

    # -- engines and configuration --------------------------------------------------------

    def add_engine(self, spec: EngineSpec) -> None:
        self._feed(EngineAdded(spec))

    def remove_engine(self, name: str, *, abort: bool = False) -> None:
        self._feed(EngineRemoved(name, abort))

    def report(self, engine: str, state: EngineState, detail: str = "") -> None:
        self._feed(EngineReport(engine, state, detail))

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
                raise RuntimeError("a batch was dispatched, and nobody asked for any. A bug.")
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

    def _on_timer(self) -> None:
        self._timer = None
        self._feed(Timer())

    def _close(self, ticket: Ticket) -> None:
        ticket.open = False
        self._tickets.pop(ticket.info.request_id, None)
