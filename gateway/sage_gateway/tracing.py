"""OpenTelemetry traces: a server span for each inference request, a client span for each call of an
engine, and W3C trace context from the client and to the engine.

Imported only where ``sage_settings.tracing.enabled`` (the extra ``tracing``). Spans leave in a
thread of the SDK by OTLP over HTTP; when its queue is full, spans are dropped, never requests.
Names follow OpenTelemetry's conventions for HTTP servers and ``gen_ai`` clients, ``sage.*`` where
there is none. No prompt, answer or key is ever in a span.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sage_gateway.config_tracing import TracingConfig
from sage_gateway.engines import Engine
from sage_gateway.routes import InferenceRoute
from sage_gateway.usage import NO_USAGE, Usage
from sage_prefect import __version__

CLOSE_S = 3.0
"""What a collector that does not answer may cost at shutdown."""
_OPERATIONS = {"chat": "chat", "completion": "text_completion", "embedding": "embeddings"}
_CONTEXT = ("traceparent", "tracestate")


class Tracing:
    """A gateway's tracer.

    Args:
        config: enabled.
        processor: takes the spans instead of the exporter; for tests.
    """

    def __init__(self, config: TracingConfig, processor: SpanProcessor | None = None) -> None:
        resource = {SERVICE_NAME: config.service_name, SERVICE_VERSION: __version__}
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(config.sample_ratio),
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            processor or BatchSpanProcessor(OTLPSpanExporter(config.endpoint))
        )
        self._tracer = self._provider.get_tracer("sage_gateway", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def request(
        self, route: InferenceRoute, headers: dict[bytes, bytes], request_id: bytes
    ) -> RequestTrace:
        """Begin the span of a request that has come."""
        carrier = {
            name: value.decode("latin-1")
            for name in _CONTEXT
            if (value := headers.get(name.encode())) is not None
        }
        span = self._tracer.start_span(
            f"POST {route.path}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": "POST",
                "http.route": route.path,
                "url.path": route.path,
                "sage.request_id": request_id.decode("ascii"),
            },
        )
        return RequestTrace(self, route, span)

    def call(
        self,
        engine: Engine,
        operation: str,
        model: str,
        parent: Span | None = None,
        askers: Iterable[RequestTrace] = (),
    ) -> CallTrace:
        """Begin the span of a call of an engine.

        Args:
            operation: as ``gen_ai.operation.name`` has it.
            parent: the span of the request that it serves.
            askers: instead of one parent, the requests whose inputs it carries together.
        """
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=None if parent is None else set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": model,
                "server.address": engine.address.host,
                "server.port": engine.address.port,
                "sage.engine": engine.name,
            },
            links=[Link(asker.span.get_span_context()) for asker in askers],
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return CallTrace(span, "".join(f"{name}: {carrier[name]}\r\n" for name in carrier).encode())

    async def close(self) -> None:
        """Send what is left, as far as the collector takes it within :data:`CLOSE_S`."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        # A daemon: an exporter that waits for a dead collector must not hold up the exit.
        threading.Thread(target=shut_down, name="sage-tracing-close", daemon=True).start()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), CLOSE_S)


class RequestTrace:
    """The spans of one request; each method is called in the order of the request's life."""

    __slots__ = ("_call", "_route", "_tracing", "span")

    def __init__(self, tracing: Tracing, route: InferenceRoute, span: Span) -> None:
        self.span = span
        self._tracing = tracing
        self._route = route
        self._call: CallTrace | None = None

    def attempt(self, engine: Engine, model: str) -> bytes:
        """Begin a call of an engine; header lines with its trace context."""
        self._call = self._tracing.call(engine, _operation(self._route), model, self.span)
        return self._call.head

    def attempt_failed(self, cause: str) -> None:
        """The call failed; another may follow."""
        if self._call is not None:
            self._call.ended(NO_USAGE, cause)
            self._call = None

    def first_token(self) -> None:
        """The first event of a stream has come."""
        if self._call is not None:
            self._call.span.add_event("first_token")

    def finished(
        self,
        *,
        status: int,
        model: str,
        tenant: str | None,
        attempts: int,
        queue_s: float,
        stream: bool,
        usage: Usage,
    ) -> None:
        """The request has ended with this status (499: its client left)."""
        if self._call is not None:
            self._call.ended(usage, None if status < 400 else str(status))
            self._call = None
        self.span.set_attributes(
            {
                "http.response.status_code": status,
                "sage.model": model,
                "sage.attempts": attempts,
                "sage.queue_ms": round(queue_s * 1e3, 3),
                "sage.stream": stream,
                **({} if tenant is None else {"sage.tenant": tenant}),
                **({} if status < 500 and status != 499 else {"error.type": str(status)}),
            }
        )
        if status >= 500:
            _mark_failed(self.span, None)
        self.span.end()


class CallTrace:
    """The span of one call of an engine.

    Attributes:
        head: header lines with its trace context.
    """

    __slots__ = ("head", "span")

    def __init__(self, span: Span, head: bytes) -> None:
        self.span = span
        self.head = head

    def ended(self, usage: Usage, error: str | None = None) -> None:
        """It brought an answer; with ``error`` (a cause, or a status) none that is of use."""
        counts: dict[str, Any] = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        self.span.set_attributes({name: n for name, n in counts.items() if n is not None})
        if error is not None:
            self.span.set_attribute("error.type", error)
            _mark_failed(self.span, error)
        self.span.end()


def _operation(route: InferenceRoute) -> str:
    return _OPERATIONS.get(route.kind, route.label)


def _mark_failed(span: Span, why: str | None) -> None:
    span.set_status(Status(StatusCode.ERROR, why))
