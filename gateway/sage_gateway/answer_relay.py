"""From an engine's answer to the client's: a stream as it comes, a whole answer in one piece.

Before the first byte has left, a failure is raised and another engine may try; afterwards it is
raised too, and the caller ends the answer so that it does not look finished.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import orjson

from sage_gateway.answer_assembly import AnswerAssembly
from sage_gateway.dialects.base import MalformedAnswer, Translation, UnusableAnswer
from sage_gateway.engines import Engine
from sage_gateway.errors import HttpError
from sage_gateway.json_splice import replaced
from sage_gateway.reply import JSON, HeaderList
from sage_gateway.scheduler import Ticket, clock
from sage_gateway.stall_guard import StallGuard
from sage_gateway.stream_progress import StreamProgress
from sage_gateway.upstream import Exchange, UpstreamError
from sage_gateway.upstream_answer import (
    WrappedError,
    retryable_status,
    says_overloaded,
    wrapped_error,
)
from sage_gateway.usage import NO_USAGE, Usage, usage_in_tail
from sage_prefect.control_plane.events import FailureCause

if TYPE_CHECKING:
    from sage_gateway.inference import InferenceCall


# Its key, or its patience, is at an end; what a client sends has no part in it.
_ENGINE_REFUSES = frozenset({401, 408})


class AnswerRelay:
    """Passes one attempt's answer on.

    Args:
        call: the request; hears of the end and of what may be retried.
        exchange: its head has come.
        headers: the response headers of ours that describe this attempt.
        translation: what the engine was asked instead of the client's own request, if so.
    """

    def __init__(
        self,
        call: InferenceCall,
        ticket: Ticket,
        engine: Engine,
        exchange: Exchange,
        headers: HeaderList,
        translation: Translation | None,
    ) -> None:
        self._call = call
        self._service = call.service
        self._reply = call.reply
        self._ticket = ticket
        self._engine = engine
        self._exchange = exchange
        self._headers = headers
        self._translation = translation

    async def pass_on(self, *, withhold_usage: bool) -> int:
        """Send the answer; the status that the client got.

        Args:
            withhold_usage: the token counts of a stream were our wish, not the client's.

        Raises:
            UpstreamError: the engine failed, or answered so that another may do better.
        """
        exchange = self._exchange
        status = exchange.status
        if status == 200 and exchange.content_type.startswith(b"text/event-stream"):
            if self._call.streams:
                await self._relay_events(withhold_usage)
                return status
            return await self._assemble()
        answer, ended = await exchange.read_all(self._service.limits.max_buffered_answer_bytes)
        came = clock()
        if status >= 400:
            exchange.abort(FailureCause.STATUS, "sent an error")
            return await self._relay_error(status, wrapped_error(self._engine.name, status, answer))
        usage = usage_in_tail(answer)
        if self._translation is not None:
            if self._call.streams or not ended:
                what = "no stream" if ended else f"more than {len(answer)} bytes"
                raise UpstreamError(FailureCause.PROTOCOL, f"sent {what}")
            answer = self._back(answer, usage)
        elif not ended:
            await self._relay_big(answer)
            return status
        self._call.done(self._ticket, usage)
        if self._ticket.batch is not None and (name := self._call.alias_of(self._engine)):
            # As where it is merged: what a client sees does not depend on who else asked.
            answer = replaced(answer, "model", name)
        self._reply.whole(status, answer, exchange.content_type or JSON, self._headers)
        self._answered(clock() - came)
        return status

    def _answered(self, back_s: float) -> None:
        """Note our own time for the whole request, ``back_s`` of it on the way back."""
        call = self._call
        self._service.metrics.answered(call.route.label, call.model, call.own_s + back_s)

    async def _relay_events(self, withhold_usage: bool) -> None:
        """A stream that the client asked for: events pass as they come."""
        exchange, ticket = self._exchange, self._ticket
        scheduler, metrics, reply = self._service.scheduler, self._service.metrics, self._reply
        if self._translation is None:
            relay = self._call.route.dialect.relay(withhold_usage=withhold_usage)
        else:
            relay = self._translation.stream()
        data = await exchange.read()
        if not data:
            raise UpstreamError(FailureCause.PROTOCOL, "ended its stream before it began")
        came = clock()
        back_s = 0.0
        scheduler.first_token(ticket)
        progress = StreamProgress(partial(scheduler.progress, ticket), came)
        metrics.first_token(self._call.route.label, self._call.model, came - self._call.arrived)
        if self._call.trace is not None:
            self._call.trace.first_token()
        reply.start(200, exchange.content_type, [*self._headers, (b"cache-control", b"no-cache")])
        self._call.relay = relay
        try:
            out = relay.feed(data)
            while True:
                ready = not out or reply.more(out)
                back_s += clock() - came
                if not ready:
                    await self._drained()
                if relay.done or not (data := await exchange.read()):
                    break
                came = clock()
                out = relay.feed(data)
                if not relay.done:
                    progress.passed(out, came)
            rest = relay.rest()
        except MalformedAnswer as error:
            raise UpstreamError(FailureCause.PROTOCOL, str(error)) from None
        except UpstreamError:
            if not relay.done:
                raise
            # The answer was whole; that the engine then dropped the connection harms nobody.
            rest = b""
        if not relay.complete:
            raise UpstreamError(
                FailureCause.PROTOCOL, "ended its stream without finishing the answer"
            )
        self._call.done(self._ticket, relay.usage)
        reply.end(rest)
        self._answered(back_s)

    async def _relay_big(self, first: bytes) -> None:
        """An answer too big to hold: passed on in pieces."""
        reply, exchange = self._reply, self._exchange
        reply.start(
            exchange.status, exchange.content_type or JSON, self._headers, exchange.content_length
        )
        tail, data = b"", first
        while data:
            if not reply.more(data):
                await self._drained()
            tail = (tail + data)[-8192:] if len(data) < 8192 else data[-8192:]
            data = await exchange.read()
        self._call.done(self._ticket, usage_in_tail(tail))
        reply.end()

    def _back(self, answer: bytes, usage: Usage) -> bytes:
        """A whole answer in the client's API."""
        assert self._translation is not None
        try:
            return self._translation.whole(answer)
        except MalformedAnswer as error:
            raise UpstreamError(FailureCause.PROTOCOL, str(error)) from None
        except UnusableAnswer as unusable:
            self._call.done(self._ticket, usage)
            raise HttpError(
                502, str(unusable), code="unusable_answer", headers=tuple(self._headers)
            ) from None

    async def _drained(self) -> None:
        """The client is slow: wait for it, but not for ever."""
        reply = self._reply
        stall = StallGuard(self._service.limits.client_stall_s, reply.cut)
        stall.sending()
        try:
            await reply.drained()
        finally:
            stall.stop()

    async def _assemble(self) -> int:
        """The engine streams, the client did not ask for it: collect the whole answer."""
        assembly, exchange = AnswerAssembly(), self._exchange
        limit, size = self._service.limits.max_buffered_answer_bytes, 0
        try:
            while not assembly.done and assembly.error is None and (data := await exchange.read()):
                if not size:
                    self._service.scheduler.first_token(self._ticket)
                size += len(data)
                if size > limit:
                    raise UpstreamError(FailureCause.PROTOCOL, f"sent more than {limit} bytes")
                assembly.feed(data)
        except MalformedAnswer as malformed:
            raise UpstreamError(FailureCause.PROTOCOL, str(malformed)) from None
        if assembly.error is not None:
            exchange.abort(FailureCause.STATUS, "sent an error")
            code = assembly.error.get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            error = wrapped_error(
                self._engine.name, status, orjson.dumps({"error": assembly.error})
            )
            return await self._relay_error(status, error)
        if not assembly.complete:
            raise UpstreamError(
                FailureCause.PROTOCOL, "ended its stream without finishing the answer"
            )
        answer = assembly.answer()
        if self._translation is not None:
            answer = self._back(answer, assembly.usage)
        self._call.done(self._ticket, assembly.usage)
        self._reply.whole(200, answer, JSON, self._headers)
        return 200

    async def _relay_error(self, status: int, error: WrappedError) -> int:
        """The engine answered with an error: another engine may do better, else pass it on."""
        if retryable_status(status):
            if self._exchange.retry_after is not None:
                self._headers.append((b"retry-after", self._exchange.retry_after))
            self._call.last_failure = HttpError(
                status,
                error.message,
                code=error.code,
                param=error.param,
                headers=tuple(self._headers),
            )
            cause = FailureCause.OVERLOADED if says_overloaded(status) else FailureCause.STATUS
            raise UpstreamError(cause, f"answered with status {status}")
        self._call.done(self._ticket, NO_USAGE)
        if status in _ENGINE_REFUSES:
            self._service.cooldown(self._engine.name)
        shown = HttpError(status, error.message, code=error.code, param=error.param)
        if self._call.plan.may_follow_error(shown):
            raise shown
        body = self._call.route.dialect.engine_error(status, error)
        self._reply.whole(status, body, headers=self._headers)
        return status
