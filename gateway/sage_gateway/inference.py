"""The data path: one request from its body to the last byte of its answer.

Steps: read and parse the body; classify; wait in the control plane for an engine; send the
client's own bytes there; relay the answer. Before the first byte has left, a failed attempt may
go to another engine; afterwards a failure ends the stream with an error event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from sage_gateway import access_log
from sage_gateway.answer_relay import AnswerRelay
from sage_gateway.auth import Caller
from sage_gateway.client_exchange import ClientExchange
from sage_gateway.config import ServerLimits
from sage_gateway.cooldown import no_cooldown
from sage_gateway.dialects.base import StreamRelay, Translation
from sage_gateway.embedding_call import EmbeddingCall
from sage_gateway.engine_speech import translated
from sage_gateway.engines import Engine, EngineRegistry
from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.fallbacks import Failure, FallbackRules
from sage_gateway.health import HealthMonitor
from sage_gateway.json_splice import splice
from sage_gateway.metrics import GatewayMetrics
from sage_gateway.model_plan import ModelPlan, plan_of
from sage_gateway.rate_limits import Lease, rate_headers, reserve
from sage_gateway.reply import HeaderList
from sage_gateway.request_body import parse_body
from sage_gateway.routes import InferenceRoute
from sage_gateway.scheduler import Refused, Scheduler, Ticket, clock
from sage_gateway.upstream import Exchange, UpstreamError
from sage_gateway.usage import NO_USAGE, Usage
from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import Band, FailureCause, RequestInfo
from sage_prefect.control_plane.request_classifier import RequestClassifier

if TYPE_CHECKING:
    from sage_gateway.tracing import RequestTrace, Tracing

log = logging.getLogger(__name__)

_SOON = ((b"retry-after", b"2"),)
# OpenAI's and Anthropic's clients heed it: their retries must not multiply ours.
_TRIED_AGAIN = (b"x-should-retry", b"false")
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
        fallbacks: FallbackRules,
    ) -> None:
        self.engines = engines
        self.scheduler = scheduler
        self.health = health
        self.metrics = metrics
        self.limits = limits
        self.fallbacks = fallbacks
        self.cooldown: Callable[[str], None] = no_cooldown
        """Hears of each engine that failed an attempt."""
        self.classifier = RequestClassifier()
        self.tracing: Tracing | None = None

    async def serve(
        self,
        route: InferenceRoute,
        caller: Caller,
        exchange: ClientExchange,
    ) -> None:
        """Serve one request; raises only what says that it cannot be answered by itself.

        Raises:
            HttpError: answer with this.
            ClientGone: nobody is there to answer.
        """
        call = InferenceCall(self, route, exchange)
        if self.tracing is not None:
            call.trace = self.tracing.request(route, exchange.headers, exchange.request_id)
        try:
            await call.run(caller)
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
            if not exchange.status:
                raise HttpError(503, message, code="shutting_down", headers=_SOON) from None
            call.break_off(503, message)
        except Exception:
            call.observe(500)
            raise


class InferenceCall:
    """One request on its way through the gateway."""

    def __init__(
        self,
        service: InferenceService,
        route: InferenceRoute,
        reply: ClientExchange,
    ) -> None:
        self.service = service
        self.route = route
        self.headers = reply.headers
        self.reply = reply
        self.arrived = clock()
        self.read_at = self.arrived
        self.queue_s = 0.0
        self.failed_s = 0.0
        self.own_s = 0.0  # our own work on the attempt that counts, both ways
        self.model = UNKNOWN_MODEL
        self.raw = b""
        self.body: dict[str, Any] = {}
        self.streams = False
        self.last_failure: HttpError | None = None
        self.plan: ModelPlan
        self.lease: Lease | None = None
        self.tried: set[str] = set()
        self.relay: StreamRelay | None = None
        # For the access log.
        self.tenant: str | None = None
        self.engine: str | None = None
        self.attempts = 0
        self.usage: Usage = NO_USAGE
        self.trace: RequestTrace | None = None

    async def run(self, caller: Caller) -> None:
        limits = self.service.limits
        self.tenant = caller.entitlement.tenant
        _check_content_type(self.headers)
        self.raw = await self.reply.body(
            max_bytes=limits.max_body_bytes, timeout_s=limits.read_timeout_s
        )
        self.read_at = clock()
        self.body = parse_body(self.raw, self.route.required)
        self.route.dialect.check(self.body)
        self.streams = self.route.may_stream and self.body.get("stream") is True
        service = self.service
        self.plan = plan_of(
            service.engines.names,
            service.fallbacks,
            self.route.kind,
            self.body["model"],
            caller.access,
        )
        if self.plan.target is not None:
            self.model = self.plan.target.group
        try:
            while True:
                try:
                    await self._serve(caller)
                    return
                except HttpError as error:
                    before = self.plan.pool
                    if self.reply.status or not self.plan.advance(error):
                        raise
                    self._note_fallback(before, error)
        finally:
            if self.lease is not None:
                self.lease.close(clock(), answered=0 < self.reply.status < 400)

    async def _serve(self, caller: Caller) -> None:
        """Let the engines of the plan's present pool answer."""
        service, plan = self.service, self.plan
        if plan.may_follow(Failure.GENERAL) and not service.scheduler.may_serve(plan.pool):
            raise HttpError(
                503,
                f"No engine for model {plan.name!r} is available.",
                code="no_engine_available",
                headers=_SOON,
            )
        info = self._classified(caller)
        if caller.meters and self.lease is None:
            self._reserve(caller, info)
        call = None if info.merge_key is None else EmbeddingCall(self.raw, self.body)
        ticket = service.scheduler.submit(info, call)
        ticket.may_leave = plan.may_follow(Failure.GENERAL)
        ticket.trace = self.trace
        if self.reply.gone:
            service.scheduler.client_gone(ticket)
        self.reply.when_gone(partial(service.scheduler.client_gone, ticket))
        try:
            await self._until_answered(ticket)
        finally:
            service.scheduler.release(ticket)

    def _classified(self, caller: Caller) -> RequestInfo:
        service, headers, pool = self.service, self.headers, self.plan.pool
        read = self.route.dialect.scheduled(self.body)
        try:
            info = service.classifier.classify(
                request_id=self._unique_id(),
                kind=self.route.kind,
                body=read if read["model"] == pool else {**read, "model": pool},
                body_bytes=len(self.raw),
                now=self.read_at,
                entitlement=caller.entitlement,
                band=_text(headers.get(b"x-sage-band")),
                objective=_text(headers.get(b"x-llm-d-inference-objective")),
                deadline_ms=_text(headers.get(b"x-sage-deadline-ms")),
                session=_text(headers.get(b"x-session-id")),
                ttft_slo_ms=_text(headers.get(b"x-slo-ttft-ms")),
                tpot_slo_ms=_text(headers.get(b"x-slo-tpot-ms")),
            )
        except RequestRejected as rejected:
            raise HttpError.of(rejected) from None
        if self.plan.target is not None and self.plan.target.is_pattern:
            # Calls of one pattern may ask for unlike models: each travels alone.
            return replace(info, merge_key=None)
        return info

    def _reserve(self, caller: Caller, info: RequestInfo) -> None:
        now = clock()
        tokens = info.prompt_tokens + (info.output_estimate or 0)
        try:
            self.lease = reserve(caller.meters, info.prompt_tokens, tokens, now)
        finally:
            self.reply.extra = rate_headers(caller.meters, now)

    def _note_fallback(self, before: str, error: HttpError) -> None:
        self.last_failure = None
        self.tried.clear()
        log.warning(
            "falls back",
            extra={
                "fields": {
                    "request_id": self.reply.request_id.decode("ascii"),
                    "model": before,
                    "to": self.plan.pool,
                    "status": error.status,
                    "why": error.message,
                }
            },
        )

    def observe(self, status: int) -> None:
        """Count the request under its outcome."""
        took_s = clock() - self.arrived
        self.service.metrics.finished(self.route.label, self.model, status, took_s)
        if self.service.limits.access_log:
            access_log.write(
                request_id=self.reply.request_id,
                route=self.route.label,
                model=self.model,
                tenant=self.tenant,
                status=status,
                stream=self.streams,
                engine=self.engine,
                attempts=self.attempts,
                queue_s=self.queue_s,
                duration_s=took_s,
                usage=self.usage,
            )
        if self.trace is not None:
            self.trace.finished(
                status=status,
                model=self.model,
                tenant=self.tenant,
                attempts=self.attempts,
                queue_s=self.queue_s,
                stream=self.streams,
                usage=self.usage,
            )

    # -- attempts -------------------------------------------------------------------------

    async def _until_answered(self, ticket: Ticket) -> None:
        while True:
            waiting_since = clock()
            try:
                name = ticket.engine if ticket.is_placed else await ticket.placed()
            except Refused as refused:
                self.queue_s += clock() - waiting_since
                self.last_failure = ticket.failure or self.last_failure
                error = self._refusal(refused)
                if ticket.attempt > 1:
                    error.headers = (*error.headers, _TRIED_AGAIN)
                raise error from None
            if name is None:
                self.observe(await self._merged_answer(ticket, waiting_since))
                return
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
            except HttpError:
                self.failed_s += clock() - attempt_since
                raise
            except UpstreamError as error:
                if ticket.gone:
                    raise ClientGone from None
                self.failed_s += clock() - attempt_since
                self._attempt_failed(ticket, name, error)
                if not self.reply.status:
                    continue
                status = 504 if error.cause is FailureCause.TIMEOUT else 502
                self.break_off(
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
        self.engine = engine.name
        self.attempts += 1
        translation = translated(self.route, self.body, engine)
        path = self.route.upstream if translation is None else translation.path
        body, withhold_usage = self._body_for(engine, ticket.info.band, translation)
        parts = [engine.post_head(path, len(body), self._upstream_headers(engine)), body]
        overhead_s = clock() - self.read_at - self.queue_s - self.failed_s
        self.own_s = overhead_s
        exchange = await engine.pool.exchange(
            parts, partial(self._bind, ticket), lambda: not ticket.gone
        )
        service.health.succeeded(engine.name)
        service.metrics.sent(self.route.label, self.model, self.queue_s, overhead_s)
        headers = self._answer_headers(engine.header_name, overhead_s)
        relay = AnswerRelay(self, ticket, engine, exchange, headers, translation)
        return await relay.pass_on(withhold_usage=withhold_usage)

    async def _merged_answer(self, ticket: Ticket, waiting_since: float) -> int:
        """All inputs were answered in batches, with those of other calls: one answer of them."""
        service, vectors = self.service, ticket.vectors
        if vectors is None or ticket.batched_by is None:
            raise RuntimeError("a call was answered by no batch. This is a bug.")
        self.queue_s += ticket.batched_at - waiting_since
        in_engine_s = ticket.answered_at - ticket.batched_at
        self.engine = ticket.batched_by.decode("ascii")
        body = vectors.answer()
        overhead_s = clock() - self.read_at - self.queue_s - self.failed_s - in_engine_s
        service.metrics.sent(self.route.label, self.model, self.queue_s, overhead_s)
        self._learn(ticket, vectors.usage)
        headers = self._answer_headers(ticket.batched_by, overhead_s)
        self.reply.whole(200, body, headers=headers)
        own_s = clock() - self.read_at - self.queue_s - self.failed_s - in_engine_s
        service.metrics.answered(self.route.label, self.model, own_s)
        return 200

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
        if ticket.exchange is not None:
            # What we give up must not go on inside the engine.
            ticket.exchange.abort(error.cause, error.message)
        service.metrics.attempt_failed(name, error.cause.value)
        if self.trace is not None:
            self.trace.attempt_failed(error.cause.value)
        service.health.failed(name, error.cause, error.message)
        service.cooldown(name)
        self.tried.add(name)
        retryable = not self.reply.status and (
            service.scheduler.may_serve(self.plan.pool, self.tried)
            or not self.plan.may_follow(Failure.GENERAL)
        )
        service.scheduler.failed(ticket, error.cause, message, retryable=retryable)

    def break_off(self, status: int, message: str) -> None:
        """The answer ends after its first byte and before its end: it must not look finished."""
        if self.relay is not None:
            self.reply.end(self.relay.broken_off(status, message))
        else:
            self.reply.cut()

    def done(self, ticket: Ticket, usage: Usage) -> None:
        """The engine has finished: settle the books and learn from its token counts."""
        self.service.scheduler.done(ticket, usage)
        self._learn(ticket, usage)

    def _learn(self, ticket: Ticket, usage: Usage) -> None:
        service = self.service
        if self.lease is not None:
            self.lease.used(usage.total)
        self.usage = usage
        if usage is not NO_USAGE:
            service.metrics.used(self.route.label, self.model, usage)
            service.classifier.learn(ticket.info, usage.prompt_tokens, usage.output_tokens)

    # -- what goes to the engine, what goes to the client -----------------------------------

    def _body_for(
        self, engine: Engine, band: Band, translation: Translation | None
    ) -> tuple[bytes, bool]:
        """The bytes to send, and whether the usage event was our wish, not the client's."""
        asked, is_chat = self.body, self.route.is_chat
        if translation is not None:
            asked, is_chat = translation.body, translation.is_chat
        changes: dict[str, Any] = {}
        # vLLM refuses a priority unless it schedules by priority. Ours says what the client is
        # entitled to, lower first.
        drop = None if engine.config.takes_priority else "priority"
        if engine.config.takes_priority:
            changes["priority"] = int(band)
        name = self._sent_name(engine)
        if name is not None:
            changes["model"] = name
        withhold = False
        if is_chat and not self.streams and engine.config.aborts_only_streams:
            changes["stream"] = True
            changes["stream_options"] = {"include_usage": True}
        if is_chat and self.streams:
            options = asked.get("stream_options") or {}
            if options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
                withhold = True
        if translation is not None:
            whole = {**asked, **changes}
            if drop is not None:
                whole.pop(drop, None)
            return orjson.dumps(whole), withhold
        if not changes and drop not in self.body:
            return self.raw, withhold
        return splice(self.raw, self.body, changes, drop), withhold

    def alias_of(self, engine: Engine) -> bytes | None:
        """The client's name of the model as JSON, where the engine has another one."""
        return None if self._sent_name(engine) is None else orjson.dumps(self.body["model"])

    def _sent_name(self, engine: Engine) -> str | None:
        """The model's name at the engine, where the body has another one."""
        served = engine.model(self.plan.pool, self.route.kind)
        return None if served is None else served.sent_as(self.plan.name, self.body["model"])

    def _upstream_headers(self, engine: Engine) -> bytes:
        lines = b"x-request-id: %b\r\n" % self.reply.request_id
        if self.trace is not None:
            return lines + self.trace.attempt(engine, self.model)
        for name in (b"traceparent", b"tracestate"):
            value = self.headers.get(name)
            if value is not None:
                lines += b"%b: %b\r\n" % (name, value)
        return lines

    def _answer_headers(self, engine: bytes, overhead_s: float) -> HeaderList:
        headers: HeaderList = [
            (b"x-sage-engine", engine),
            (b"x-sage-queue-ms", b"%.3f" % (self.queue_s * 1e3)),
            (b"x-sage-overhead-ms", b"%.3f" % (overhead_s * 1e3)),
        ]
        if self.plan.fell_back:
            # Names of models are the operator's own words; a header has ASCII only.
            headers.append((b"x-sage-model", quote(self.plan.name, safe="/:@*+").encode()))
        return headers

    # -- checks ---------------------------------------------------------------------------

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
