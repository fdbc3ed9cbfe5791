"""The data path: one request from its body to the last byte of its answer.

Steps: read and parse the body; classify; wait in the control plane for an engine; send the
client's own bytes there; relay the answer. Before the first byte has left, a failed attempt may
go to another engine; afterwards a failure ends the stream with an error event.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sage_gateway.auth import Caller
from sage_gateway.config import ServerLimits
from sage_gateway.engines import Engine, EngineRegistry
from sage_gateway.errors import ClientGone, HttpError, error_event
from sage_gateway.health import HealthMonitor
from sage_gateway.http_protocol import ABORT
from sage_gateway.json_splice import splice
from sage_gateway.metrics import GatewayMetrics
from sage_gateway.reply import JSON, HeaderList, Reply
from sage_gateway.request_body import Receive, parse_body, read_body
from sage_gateway.routes import InferenceRoute
from sage_gateway.scheduler import Refused, Scheduler, Ticket, clock
from sage_gateway.sse_relay import SseRelay
from sage_gateway.upstream import Exchange, UpstreamError
from sage_gateway.upstream_answer import retryable_status, wrapped_error
from sage_gateway.usage import NO_USAGE, Usage, usage_in_tail
from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import FailureCause
from sage_prefect.control_plane.request_classifier import RequestClassifier

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.25
# A used connection that dies this soon was closed by the engine before it saw the request.
STALE_WITHIN_S = 1.0
_SOON = ((b"retry-after", b"2"),)
UNKNOWN_MODEL = "unknown"  # the label of models that nobody serves: clients choose no labels


class InferenceService:
    """What all requests share."""

    def __init__(
        self,
        engines: EngineRegistry,
        scheduler: Scheduler,
        health: HealthMonitor,
        metrics: GatewayMetrics,
        limits: ServerLimits,
    ) -> None:
        self.engines = engines
        self.scheduler = scheduler
        self.health = health
        self.metrics = metrics
        self.limits = limits
        self.classifier = RequestClassifier()

    async def serve(
        self,
        route: InferenceRoute,
        caller: Caller,
        scope: dict[str, Any],
        headers: dict[bytes, bytes],
        receive: Receive,
        reply: Reply,
    ) -> None:
        """Serve one request; raises only what says that it cannot be answered by itself.

        Raises:
            HttpError: answer with this.
            ClientGone: nobody is there to answer.
        """
        call = InferenceCall(self, route, scope, headers, reply)
        try:
            await call.run(caller, receive)
        except HttpError as error:
            call.observe(error.status)
            raise
        except ClientGone:
            call.observe(499)
            raise
        except asyncio.CancelledError:
            # The time for a graceful shutdown is over. This is the task's last act.
            call.observe(503)
            message = "The gateway is shutting down."
            if not reply.status:
                raise HttpError(503, message, code="shutting_down", headers=_SOON) from None
            await call.break_off(503, message)
        except Exception:
            call.observe(500)
            raise


class InferenceCall:
    """One request on its way through the gateway."""

    def __init__(
        self,
        service: InferenceService,
        route: InferenceRoute,
        scope: dict[str, Any],
        headers: dict[bytes, bytes],
        reply: Reply,
    ) -> None:
        self.service = service
        self.route = route
        self.headers = headers
        self.reply = reply
        self.loop = asyncio.get_running_loop()
        self.arrived = clock()
        self.read_at = self.arrived
        self.queue_s = 0.0
        self.failed_s = 0.0
        self.model = UNKNOWN_MODEL
        self.raw = b""
        self.body: dict[str, Any] = {}
        self.streams = False
        self.last_failure: HttpError | None = None
        self.relay: SseRelay | None = None
        self._cut = scope.get("extensions", {}).get(ABORT)

    async def run(self, caller: Caller, receive: Receive) -> None:
        service, headers, limits = self.service, self.headers, self.service.limits
        _check_content_type(headers)
        self.raw = await read_body(
            receive, headers, max_bytes=limits.max_body_bytes, timeout_s=limits.read_timeout_s
        )
        self.read_at = clock()
        self.body = parse_body(self.raw, self.route.required)
        self.streams = self.route.may_stream and self.body.get("stream") is True
        self._check_model()
        try:
            info = service.classifier.classify(
                request_id=self._unique_id(),
                kind=self.route.kind,
                body=self.body,
                body_bytes=len(self.raw),
                now=self.read_at,
                entitlement=caller.entitlement,
                band=_text(headers.get(b"x-sage-band")),
                deadline_ms=_text(headers.get(b"x-sage-deadline-ms")),
                session=_text(headers.get(b"x-session-id")),
            )
        except RequestRejected as rejected:
            raise HttpError.of(rejected) from None
        ticket = service.scheduler.submit(info)
        watcher = self.loop.create_task(_watch_client(receive, service.scheduler, ticket))
        try:
            await self._until_answered(ticket)
        finally:
            watcher.cancel()
            service.scheduler.release(ticket)

    def observe(self, status: int) -> None:
        """Count the request under its outcome."""
        self.service.metrics.finished(self.route.label, self.model, status, clock() - self.arrived)

    # -- attempts -------------------------------------------------------------------------

    async def _until_answered(self, ticket: Ticket) -> None:
        while True:
            waiting_since = clock()
            try:
                name = await ticket.placed()
            except Refused as refused:
                raise self._refusal(refused) from None
            self.queue_s += clock() - waiting_since
            engine = self.service.engines.get(name)
            if engine is None:
                # Removed in this very moment; the control plane hears of it as of any failure.
                self._attempt_failed(
                    ticket, name, UpstreamError(FailureCause.CONNECT, "was removed")
                )
                continue
            attempt_since = clock()
            try:
                status = await self._attempt(ticket, engine)
            except UpstreamError as error:
                if ticket.gone:
                    raise ClientGone from None
                self.failed_s += clock() - attempt_since
                self._attempt_failed(ticket, name, error)
                if not self.reply.status:
                    continue
                status = 504 if error.cause is FailureCause.TIMEOUT else 502
                await self.break_off(
                    status, f"Engine {name!r} {error.message}; the answer is incomplete."
                )
            self.observe(status)
            return

    async def _attempt(self, ticket: Ticket, engine: Engine) -> int:
        """One attempt on one engine; the status that the client got.

        Raises:
            UpstreamError: the engine failed; ``reply.status`` says whether bytes had left.
        """
        service = self.service
        body, withhold_usage = self._body_for(engine)
        parts = [engine.post_head(self.route.upstream, len(body), self._upstream_headers()), body]
        overhead_s = clock() - self.read_at - self.queue_s - self.failed_s
        exchange = await self._send(ticket, engine, parts)
        service.health.succeeded(engine.name)
        status = exchange.status
        headers = self._answer_headers(engine, overhead_s)
        service.metrics.sent(self.route.label, self.model, self.queue_s, overhead_s)
        if (
            status == 200
            and self.streams
            and exchange.content_type.startswith(b"text/event-stream")
        ):
            await self._relay_events(ticket, engine, exchange, headers, withhold_usage)
            return status
        answer, ended = await exchange.read_all(service.limits.max_buffered_answer_bytes)
        if status >= 400:
            exchange.abort(FailureCause.STATUS, "sent an error")
            return await self._relay_error(ticket, engine, exchange, answer, headers)
        if not ended:
            await self._relay_big(ticket, exchange, answer, headers)
            return status
        self._done(ticket, usage_in_tail(answer))
        await self.reply.whole(status, answer, exchange.content_type or JSON, headers)
        return status

    async def _send(self, ticket: Ticket, engine: Engine, parts: list[bytes]) -> Exchange:
        """Send the request and wait for the head of the answer."""
        pool = engine.pool
        exchange, used_before = await pool.request(parts)
        sent_at = clock()
        self._bind(ticket, exchange)
        try:
            await exchange.head()
        except UpstreamError as error:
            stale = (
                used_before
                and not error.answered
                and error.cause is FailureCause.RESET
                and not ticket.gone
                and clock() - sent_at < STALE_WITHIN_S
            )
            if not stale:
                raise
            exchange = await pool.request_fresh(parts)
            self._bind(ticket, exchange)
            await exchange.head()
        return exchange

    @staticmethod
    def _bind(ticket: Ticket, exchange: Exchange) -> None:
        ticket.exchange = exchange
        if ticket.gone:
            exchange.abort(FailureCause.INTERNAL, "was cancelled by the client")

    def _attempt_failed(self, ticket: Ticket, name: str, error: UpstreamError) -> None:
        service = self.service
        message = f"Engine {name!r} {error.message}."
        log.warning(
            "attempt failed",
            extra={
                "fields": {
                    "engine": name,
                    "cause": error.cause.value,
                    "why": error.message,
                    "request_id": ticket.info.request_id,
                    "attempt": ticket.attempt,
                    "started": bool(self.reply.status),
                }
            },
        )
        service.metrics.attempt_failed(name, error.cause.value)
        service.health.failed(name, error.cause, error.message)
        service.scheduler.failed(ticket, error.cause, message, retryable=not self.reply.status)

    async def break_off(self, status: int, message: str) -> None:
        """The answer ends after its first byte and before its end: it must not look finished."""
        if self.relay is not None:
            event = error_event(status, message, code="answer_incomplete")
            await self.reply.end(self.relay.before_error() + event)
        elif self._cut is not None:
            self._cut()

    # -- answers --------------------------------------------------------------------------

    async def _relay_events(
        self,
        ticket: Ticket,
        engine: Engine,
        exchange: Exchange,
        headers: HeaderList,
        withhold_usage: bool,
    ) -> None:
        scheduler, metrics, reply = self.service.scheduler, self.service.metrics, self.reply
        relay = SseRelay(withhold_usage=withhold_usage)
        data = await exchange.read()
        if not data:
            raise UpstreamError(FailureCause.PROTOCOL, "ended its stream before it began")
        scheduler.first_token(ticket)
        metrics.first_token(self.route.label, self.model, clock() - self.arrived)
        await reply.start(200, exchange.content_type, [*headers, (b"cache-control", b"no-cache")])
        self.relay = relay
        chunks, reported = 0, clock()
        stall = StallGuard(self.loop, self.service.limits.client_stall_s, self._cut)
        try:
            while data:
                out = relay.feed(data)
                if out:
                    stall.sending()
                    await reply.more(out)
                    stall.sent()
                chunks += 1
                now = clock()
                if now - reported >= PROGRESS_INTERVAL_S:
                    scheduler.progress(ticket, chunks)
                    chunks, reported = 0, now
                if relay.done:
                    break
                data = await exchange.read()
        except UpstreamError:
            if not relay.done:
                raise
            # The answer was whole; that the engine then dropped the connection harms nobody.
        finally:
            stall.stop()
        rest = relay.rest()
        if not relay.complete:
            raise UpstreamError(
                FailureCause.PROTOCOL, "ended its stream without finishing the answer"
            )
        self._done(ticket, relay.usage)
        await reply.end(rest)

    async def _relay_big(
        self, ticket: Ticket, exchange: Exchange, first: bytes, headers: HeaderList
    ) -> None:
        """An answer too big to hold: passed on in pieces."""
        reply = self.reply
        await reply.start(
            exchange.status, exchange.content_type or JSON, headers, exchange.content_length
        )
        stall = StallGuard(self.loop, self.service.limits.client_stall_s, self._cut)
        tail, data = b"", first
        try:
            while data:
                stall.sending()
                await reply.more(data)
                stall.sent()
                tail = (tail + data)[-8192:] if len(data) < 8192 else data[-8192:]
                data = await exchange.read()
        finally:
            stall.stop()
        self._done(ticket, usage_in_tail(tail))
        await reply.end()

    async def _relay_error(
        self,
        ticket: Ticket,
        engine: Engine,
        exchange: Exchange,
        answer: bytes,
        headers: HeaderList,
    ) -> int:
        """The engine answered with an error: another engine may do better, else pass it on."""
        status = exchange.status
        error = wrapped_error(engine.name, status, answer)
        if retryable_status(status):
            if exchange.retry_after is not None:
                headers.append((b"retry-after", exchange.retry_after))
            self.last_failure = HttpError(
                status, error.message, code=error.code, param=error.param, headers=tuple(headers)
            )
            raise UpstreamError(FailureCause.STATUS, f"answered with status {status}")
        self._done(ticket, NO_USAGE)
        await self.reply.whole(status, error.body, headers=headers)
        return status

    def _done(self, ticket: Ticket, usage: Usage) -> None:
        service = self.service
        service.scheduler.done(ticket, usage)
        if usage is not NO_USAGE:
            service.metrics.used(self.model, usage)
            if usage.prompt_tokens:
                service.classifier.learn(self.model, len(self.raw), usage.prompt_tokens)

    # -- what goes to the engine, what goes to the client -----------------------------------

    def _body_for(self, engine: Engine) -> tuple[bytes, bool]:
        """The bytes to send, and whether the usage event was our wish, not the client's."""
        changes: dict[str, Any] = {}
        served = engine.model(self.body["model"], self.route.kind)
        if served is not None and served.upstream is not None:
            changes["model"] = served.upstream
        withhold = False
        if self.streams:
            options = self.body.get("stream_options") or {}
            if options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
                withhold = True
        return (splice(self.raw, self.body, changes) if changes else self.raw), withhold

    def _upstream_headers(self) -> bytes:
        lines = b"x-request-id: %b\r\n" % self.reply.request_id
        for name in (b"traceparent", b"tracestate"):
            value = self.headers.get(name)
            if value is not None:
                lines += b"%b: %b\r\n" % (name, value)
        return lines

    def _answer_headers(self, engine: Engine, overhead_s: float) -> HeaderList:
        return [
            (b"x-sage-engine", engine.header_name),
            (b"x-sage-queue-ms", b"%.3f" % (self.queue_s * 1e3)),
            (b"x-sage-overhead-ms", b"%.3f" % (overhead_s * 1e3)),
        ]

    # -- checks ---------------------------------------------------------------------------

    def _check_model(self) -> None:
        """Note the model for the metrics; refuse a known model of another mode."""
        model = self.body["model"]
        if self.service.engines.serves(model, self.route.kind):
            self.model = model
            return
        modes = self.service.engines.modes(model)
        if modes:
            fitting = "/v1/embeddings" if "embedding" in modes else "/v1/chat/completions"
            raise HttpError(
                400,
                f"The model {model!r} does not serve this route; use {fitting}.",
                code="model_mode_mismatch",
                param="model",
            )

    def _unique_id(self) -> str:
        """The request's id for the control plane; a client may send one id twice."""
        wanted = self.reply.request_id.decode("ascii")
        unique, n = wanted, 1
        while self.service.scheduler.is_live(unique):
            n += 1
            unique = f"{wanted}#{n}"
        return unique

    def _refusal(self, refused: Refused) -> HttpError:
        reject = refused.reject
        if reject.engine is not None and self.last_failure is not None:
            return self.last_failure
        headers: HeaderList = []
        if reject.retry_after is not None:
            headers.append((b"retry-after", b"%d" % reject.retry_after))
        if reject.engine is not None:
            headers.append((b"x-sage-engine", reject.engine.encode("ascii")))
        param = "model" if reject.code == "model_not_found" else None
        return HttpError(
            reject.status, reject.message, code=reject.code, param=param, headers=tuple(headers)
        )


class StallGuard:
    """Cuts a client that takes nothing for too long; one timer per stream, moved lazily."""

    __slots__ = ("_cut", "_limit_s", "_loop", "_since", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, cut: Any) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._cut = cut
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = loop.call_later(limit_s, self._check)

    def sending(self) -> None:
        self._since = clock()

    def sent(self) -> None:
        self._since = 0.0

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        waited = clock() - self._since if self._since else 0.0
        if waited >= self._limit_s:
            self._timer = None
            log.warning("client takes nothing of its answer: cut off")
            if self._cut is not None:
                self._cut()
            return
        self._timer = self._loop.call_later(self._limit_s - waited, self._check)


async def _watch_client(receive: Receive, scheduler: Scheduler, ticket: Ticket) -> None:
    """Cancel the request when its client goes. Ends with the answer at the latest."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            scheduler.client_gone(ticket)
            return


def _check_content_type(headers: dict[bytes, bytes]) -> None:
    given = headers.get(b"content-type")
    if given is not None and given.split(b";", 1)[0].strip().lower() != b"application/json":
        raise HttpError(
            415,
            "The body's content-type is not application/json.",
            code="unsupported_media_type",
        )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
