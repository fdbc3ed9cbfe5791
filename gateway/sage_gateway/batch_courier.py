"""Batches on their way: inputs of several calls in one call of an engine, and the answer back.

The inputs travel in their clients' bytes and the vectors in the engine's: nothing is encoded anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sage_gateway.cooldown import no_cooldown
from sage_gateway.embedding_answer import BadAnswer, Vectors, read_vectors
from sage_gateway.engines import Engine, EngineRegistry
from sage_gateway.errors import HttpError
from sage_gateway.health import HealthMonitor
from sage_gateway.metrics import GatewayMetrics
from sage_gateway.reply import HeaderList
from sage_gateway.scheduler import Scheduler, Share, Ticket
from sage_gateway.upstream import Exchange, UpstreamError
from sage_gateway.upstream_answer import WrappedError, retryable_status, wrapped_error
from sage_gateway.usage import NO_USAGE, Usage
from sage_gateway.vector_collection import shared
from sage_prefect.control_plane.events import DispatchBatch, FailureCause

if TYPE_CHECKING:
    from sage_gateway.tracing import CallTrace, Tracing

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 512 << 20
"""2,048 vectors of 8,192 numbers with 20 digits each are 340 MB."""
# The engine blames what it was sent; other errors of the 4xx kind blame the caller or the path.
_BAD_INPUT = frozenset({400, 413, 422})


@dataclass(slots=True, eq=False)
class _Part:
    """An input that is sent, and all who get its vector."""

    sender: Ticket
    index: int
    owners: list[tuple[Ticket, int]]


@dataclass(slots=True, eq=False)
class _Trip:
    """A batch under way."""

    batch_id: int
    engine: str
    parts: list[_Part]
    exchange: Exchange | None = None
    trace: CallTrace | None = None
    given_up: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def bind(self, exchange: Exchange) -> None:
        self.exchange = exchange
        if self.given_up is not None:
            exchange.abort(FailureCause.INTERNAL, self.given_up)

    def trace_ended(self, error: str | None = None, usage: Usage = NO_USAGE) -> None:
        """Its call of the engine is over: the first word counts."""
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.ended(usage, error)

    @property
    def wanted(self) -> bool:
        return self.given_up is None


class _Refused(Exception):  # noqa: N818 - the engine's answer
    """The engine answered with an error."""

    def __init__(self, status: int, error: WrappedError, retry_after: bytes | None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.retry_after = retry_after


class BatchCourier:
    """Carries batches; one task each."""

    def __init__(
        self,
        engines: EngineRegistry,
        scheduler: Scheduler,
        health: HealthMonitor,
        metrics: GatewayMetrics,
    ) -> None:
        self._engines = engines
        self._scheduler = scheduler
        self._health = health
        self._metrics = metrics
        self._trips: dict[int, _Trip] = {}
        self.tracing: Tracing | None = None
        self.cooldown: Callable[[str], None] = no_cooldown
        """Hears of each engine that failed a call."""

    def carry(self, action: DispatchBatch, tickets: Mapping[str, Ticket]) -> None:
        """Begin; who has left meanwhile is left out."""
        parts: list[_Part] = []
        for part in action.parts:
            named = ((part.request_id, part.index), *part.copies)
            owners = [(tickets[name], index) for name, index in named if name in tickets]
            if owners:
                parts.append(_Part(*owners[0], owners))
        trip = _Trip(action.batch_id, action.engine, parts)
        self._trips[action.batch_id] = trip
        trip.task = asyncio.get_running_loop().create_task(self._travel(trip))

    def abort(self, batch_id: int, why: str) -> None:
        """End a batch's call: its connection is closed."""
        trip = self._trips.get(batch_id)
        if trip is not None:
            trip.given_up = why
            if trip.exchange is not None:
                trip.exchange.abort(FailureCause.INTERNAL, why)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [trip.task for trip in self._trips.values() if trip.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one batch ------------------------------------------------------------------------

    async def _travel(self, trip: _Trip) -> None:
        name = trip.engine
        try:
            engine = self._engines.get(name)
            if engine is None:
                # Removed in this very moment; the control plane hears of it as of any failure.
                raise UpstreamError(FailureCause.CONNECT, "was removed")
            answer = await self._ask(trip, engine)
            vectors = self._read(answer, len(trip.parts))
        except _Refused as refused:
            self._refused(trip, refused)
        except UpstreamError as error:
            self._failed(trip, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            # A fault of ours: its requests must end, and it must be seen.
            log.exception("a batch was lost", extra={"fields": {"engine": name}})
            self._tell_failed(trip, FailureCause.INTERNAL, "The batch was lost.", retryable=False)
        else:
            shares = _shares(trip.parts, vectors)
            self._metrics.batched(name, len(trip.parts))
            trip.trace_ended(usage=Usage(vectors.prompt_tokens))
            self._scheduler.batch_done(
                trip.batch_id, engine.header_name, shares, vectors.prompt_tokens
            )
        finally:
            self._trips.pop(trip.batch_id, None)
            trip.trace_ended("cancelled")  # if nothing else ended it

    async def _ask(self, trip: _Trip, engine: Engine) -> bytes:
        first = trip.parts[0].sender
        if first.call is None:
            raise RuntimeError("a batch holds a call that may not be merged. This is a bug.")
        inputs = []
        for part in trip.parts:
            call = part.sender.call
            if call is None:
                raise RuntimeError("a batch holds a call that may not be merged. This is a bug.")
            inputs.append(call.inputs[part.index])
        served = engine.model(first.info.model, "embedding")
        written: str = first.call.parsed["model"]
        name = None if served is None else served.sent_as(written, written)
        body = first.call.with_inputs(inputs, name)
        extra = b"x-request-id: %b\r\n" % _id(trip)
        if self.tracing is not None:
            owners = {id(ticket): ticket for part in trip.parts for ticket, _ in part.owners}
            traces = [ticket.trace for ticket in owners.values() if ticket.trace is not None]
            trip.trace = self.tracing.call(engine, "embeddings", first.info.model, askers=traces)
            extra += trip.trace.head
        head = engine.post_head("/embeddings", len(body), extra)
        exchange = await engine.pool.exchange([head, body], trip.bind, lambda: trip.wanted)
        self._health.succeeded(engine.name)
        answer, ended = await exchange.read_all(MAX_ANSWER_BYTES)
        if exchange.status != 200:
            exchange.abort(FailureCause.STATUS, "sent an error")
            error = wrapped_error(engine.name, exchange.status, answer)
            raise _Refused(exchange.status, error, exchange.retry_after)
        if not ended:
            exchange.abort(FailureCause.PROTOCOL, "sent too much")
            raise UpstreamError(
                FailureCause.PROTOCOL, f"sent more than {MAX_ANSWER_BYTES} bytes", answered=True
            )
        return answer

    @staticmethod
    def _read(answer: bytes, count: int) -> Vectors:
        try:
            return read_vectors(answer, count)
        except BadAnswer as bad:
            raise UpstreamError(FailureCause.PROTOCOL, str(bad), answered=True) from None

    def _refused(self, trip: _Trip, refused: _Refused) -> None:
        status, error = refused.status, refused.error
        bad_input = status in _BAD_INPUT
        self._metrics.attempt_failed(trip.engine, FailureCause.STATUS.value)
        trip.trace_ended(str(status))
        if not bad_input:
            self.cooldown(trip.engine)
        _log_failure(trip, FailureCause.STATUS, f"answered with status {status}")
        named: HeaderList = [(b"x-sage-engine", trip.engine.encode("ascii"))]
        if refused.retry_after is not None:
            named.append((b"retry-after", refused.retry_after))
        headers = tuple(named)
        message = f"Engine {trip.engine!r} answered with status {status}."
        shown = HttpError(status, message, code=error.code, headers=headers)
        if len(trip.parts) == 1:
            # Only then is it sure that the engine speaks of this client's own input.
            shown = HttpError(
                status, error.message, code=error.code, param=error.param, headers=headers
            )
        for part in trip.parts:
            for ticket, _ in part.owners:
                ticket.failure = shown
        self._tell_failed(
            trip,
            FailureCause.STATUS,
            message,
            retryable=retryable_status(status),
            bad_input=bad_input,
        )

    def _failed(self, trip: _Trip, error: UpstreamError) -> None:
        if trip.exchange is not None:
            trip.exchange.abort(error.cause, error.message)
        if trip.wanted:
            _log_failure(trip, error.cause, error.message)
            self._metrics.attempt_failed(trip.engine, error.cause.value)
            trip.trace_ended(error.cause.value)
            self._health.failed(trip.engine, error.cause, error.message)
            self.cooldown(trip.engine)
        for part in trip.parts:
            for ticket, _ in part.owners:
                ticket.failure = None
        message = f"Engine {trip.engine!r} {error.message}."
        self._tell_failed(trip, error.cause, message, retryable=True)

    def _tell_failed(
        self,
        trip: _Trip,
        cause: FailureCause,
        message: str,
        *,
        retryable: bool,
        bad_input: bool = False,
    ) -> None:
        self._trips.pop(trip.batch_id, None)
        self._scheduler.batch_failed(
            trip.batch_id, trip.engine, cause, message, retryable=retryable, bad_input=bad_input
        )


def _shares(parts: list[_Part], vectors: Vectors) -> list[Share]:
    """Each request's part of an answer; equal inputs get equal bytes and share their cost."""
    owned: dict[int, tuple[Ticket, list[tuple[int, bytes]]]] = {}
    for part, vector in zip(parts, vectors.vectors, strict=True):
        for ticket, index in part.owners:
            owned.setdefault(id(ticket), (ticket, []))[1].append((index, vector))
    tickets = list(owned.values())
    weights = [
        sum(max(1, ticket.info.inputs[index]) for index, _ in own) for ticket, own in tickets
    ]
    prompt, total = (
        [None] * len(tickets) if count is None else shared(count, weights)
        for count in (vectors.prompt_tokens, vectors.total_tokens)
    )
    return [Share(ticket, own, prompt[at], total[at]) for at, (ticket, own) in enumerate(tickets)]


def _id(trip: _Trip) -> bytes:
    """The client's id, if it is one client's; else the batch's number."""
    tickets = {ticket.info.request_id for part in trip.parts for ticket, _ in part.owners}
    if len(tickets) == 1:
        return tickets.pop().encode("ascii")
    return b"batch-%d" % trip.batch_id


def _log_failure(trip: _Trip, cause: FailureCause, why: str) -> None:
    log.warning(
        "batch failed",
        extra={
            "fields": {
                "engine": trip.engine,
                "cause": cause.value,
                "why": why,
                "batch": trip.batch_id,
                "inputs": len(trip.parts),
            }
        },
    )
