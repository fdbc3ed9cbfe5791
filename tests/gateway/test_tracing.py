"""OpenTelemetry: what a real OTLP exporter sends, and the trace context on its way."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind, StatusCode

from sage_gateway.config import HealthConfig, parse_config
from sage_gateway.config_tracing import TracingConfig
from sage_gateway.engines import ServedModel
from sage_prefect.common.errors import MissingDependencyError, SettingsError

QUIET = HealthConfig(probe_interval_s=60, failures=1000)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENTS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Collector:
    """What arrived at an OTLP collector."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.url = f"http://127.0.0.1:{peer.port}/v1/traces"

    def spans(self) -> list[Any]:
        found: list[Any] = []
        for request in self.peer.posts:
            assert request.path == "/v1/traces"
            sent = ExportTraceServiceRequest.FromString(request.body)
            found += [
                s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans
            ]
        return found

    def resource(self) -> dict[str, Any]:
        sent = ExportTraceServiceRequest.FromString(self.peer.posts[0].body)
        return attributes(sent.resource_spans[0].resource)


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@pytest.fixture
async def collector(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Collector:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)

    async def takes(request: Any) -> None:
        await request.answer(200, b"", "application/x-protobuf")

    return Collector(await lab.peer(takes))


def on(collector: Collector, **fields: Any) -> TracingConfig:
    return TracingConfig(enabled=True, endpoint=collector.url, **fields)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_server_span_with_a_call(
    lab: Any, collector: Collector, stream: bool
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), health=QUIET, tracing=on(collector))
    secret = "the-client-said-this"
    messages = [{"role": "user", "content": secret}]
    answer = await gateway.chat(stream=stream, messages=messages, headers=CLIENTS)
    assert answer.status_code == 200
    await lab.until(lambda: len(collector.spans()) == 2, "two spans")
    call, request = sorted(collector.spans(), key=lambda span: span.kind, reverse=True)
    # The protocol counts kinds from 1.
    assert (request.kind, call.kind) == (SpanKind.SERVER.value + 1, SpanKind.CLIENT.value + 1)
    assert (request.name, call.name) == ("POST /v1/chat/completions", "chat m")
    assert request.trace_id.hex() == call.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == PARENT
    assert call.parent_span_id == request.span_id
    said = attributes(request)
    assert said["http.response.status_code"] == 200
    assert (said["sage.tenant"], said["sage.stream"]) == ("default", stream)
    assert said["sage.request_id"] == answer.headers["x-request-id"]
    said = attributes(call)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "m"
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 2)
    assert (said["server.address"], said["server.port"]) == ("127.0.0.1", peer.port)
    assert [event.name for event in call.events] == (["first_token"] if stream else [])
    assert request.start_time_unix_nano <= call.start_time_unix_nano
    assert call.end_time_unix_nano <= request.end_time_unix_nano
    # The engine's own spans hang below the call.
    sent = peer.posts[0].headers
    assert sent["traceparent"] == f"00-{TRACE}-{call.span_id.hex()}-01"
    assert sent["tracestate"] == "vendor=1"
    assert collector.resource()["service.name"] == "sage-gateway"
    for request in collector.peer.posts:
        assert secret.encode() not in request.body
        assert lab.KEY.encode() not in request.body


async def test_each_attempt_is_a_call(lab: Any, collector: Collector) -> None:
    async def fails(request: Any) -> None:
        request.reset()

    bad, good = await lab.peer(fails), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"),
        lab.engine(good, "good"),
        health=QUIET,
        policy="least_outstanding",
        tracing=on(collector),
    )
    assert (await gateway.chat()).status_code == 200
    await lab.until(lambda: len(collector.spans()) == 3, "three spans")
    calls = {
        attributes(span)["sage.engine"]: span
        for span in collector.spans()
        if "sage.engine" in attributes(span)
    }
    assert calls["bad"].status.code == StatusCode.ERROR.value
    assert attributes(calls["bad"])["error.type"] == "reset"
    assert calls["good"].status.code != StatusCode.ERROR.value
    assert calls["good"].parent_span_id == calls["bad"].parent_span_id


async def test_what_is_refused_is_a_span_without_a_call(lab: Any, collector: Collector) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()), health=QUIET, tracing=on(collector))
    assert (await gateway.chat(model="nobody")).status_code == 404
    await lab.until(collector.spans, "a span")
    (span,) = collector.spans()
    said = attributes(span)
    assert said["http.response.status_code"] == 404
    assert said["sage.model"] == "unknown"
    assert span.status.code != StatusCode.ERROR.value  # a client's mistake is no fault of ours


async def test_merged_calls_are_linked_to_one_call_of_the_engine(
    lab: Any, collector: Collector
) -> None:
    held = asyncio.Event()

    async def slow(request: Any) -> None:
        if request.method == "POST":
            if len(peer.posts) == 1:
                await held.wait()
            inputs = request.json["input"]
            count = len(inputs) if isinstance(inputs, list) else 1
            items = ",".join(f'{{"embedding":[0.5],"index":{i}}}' for i in range(count))
            body = f'{{"data":[{items}],"usage":{{"prompt_tokens":{count}}}}}'
            await request.answer(200, body.encode())
            return
        await request.answer(200, b"{}")

    peer = await lab.peer(slow)
    engine = lab.engine(peer, models=(ServedModel("m", "embedding"),), max_concurrency=1)
    gateway = await lab.gateway(engine, health=QUIET, policy="hybrid", tracing=on(collector))

    async def embed(text: str, **headers: str) -> int:
        answer = await gateway.client.post(
            "/v1/embeddings", json={"model": "m", "input": [text]}, headers=headers
        )
        return answer.status_code

    first = asyncio.ensure_future(embed("a"))
    await lab.until(lambda: peer.posts, "the first call")
    others = [asyncio.ensure_future(embed(text, **CLIENTS)) for text in "bc"]
    await lab.until(lambda: gateway.gateway.manager.queued == 2, "two waiting calls")
    held.set()
    assert await asyncio.gather(first, *others) == [200, 200, 200]
    assert len(peer.posts) == 2
    await lab.until(lambda: len(collector.spans()) == 5, "all spans")
    merged = next(span for span in collector.spans() if len(span.links) == 2)
    served = {span.span_id for span in collector.spans() if span.trace_id.hex() == TRACE}
    assert {link.span_id for link in merged.links} == served
    assert attributes(merged)["gen_ai.usage.input_tokens"] == 2
    assert peer.posts[1].headers["traceparent"].split("-")[2] == merged.span_id.hex()


async def test_who_is_not_sampled_leaves_no_span_and_passes_its_context_on(
    lab: Any, collector: Collector
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), health=QUIET, tracing=on(collector))
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert (await gateway.chat(headers=unsampled)).status_code == 200
    assert (await gateway.chat()).status_code == 200
    await lab.until(lambda: len(collector.spans()) == 2, "the second request's spans")
    assert TRACE not in {span.trace_id.hex() for span in collector.spans()}
    assert peer.posts[0].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert peer.posts[0].headers["traceparent"].endswith("-00")


async def test_a_ratio_of_0_samples_nobody_without_a_context(
    lab: Any, collector: Collector
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer), health=QUIET, tracing=on(collector, sample_ratio=0.0)
    )
    await gateway.chat()
    assert (await gateway.chat(headers=CLIENTS)).status_code == 200
    await lab.until(lambda: len(collector.spans()) == 2, "the second request's spans")
    assert {span.trace_id.hex() for span in collector.spans()} == {TRACE}


@pytest.mark.parametrize("damaged", ["", "00-0-0-01", "x" * 200, f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_damaged_context_begins_a_new_trace(
    lab: Any, collector: Collector, damaged: str
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), health=QUIET, tracing=on(collector))
    assert (await gateway.chat(headers={"traceparent": damaged})).status_code == 200
    await lab.until(lambda: len(collector.spans()) == 2, "two spans")
    request = next(span for span in collector.spans() if not span.parent_span_id)
    assert peer.posts[0].headers["traceparent"].split("-")[1] == request.trace_id.hex()


async def test_a_collector_that_never_answers_costs_no_request(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr("sage_gateway.tracing.CLOSE_S", 0.05)

    answers = asyncio.Event()

    async def hangs(request: Any) -> None:
        await answers.wait()
        await request.answer(200, b"", "application/x-protobuf")

    silent = Collector(await lab.peer(hangs))
    gateway = await lab.gateway(lab.engine(await lab.peer()), health=QUIET, tracing=on(silent))
    for _ in range(3):
        assert (await gateway.chat()).status_code == 200
    await lab.until(lambda: silent.peer.posts, "an export")
    assert (await gateway.chat()).status_code == 200
    await gateway.gateway.tracing.close()  # does not wait for the answer
    assert not answers.is_set()
    answers.set()

    def ended() -> bool:
        return not any(thread.name.startswith("sage-tracing") for thread in threading.enumerate())

    await lab.until(ended, "the end of the exporter")


def test_settings() -> None:
    assert not parse_config(None).tracing.enabled
    section = {"enabled": True, "endpoint": "http://c:4318/v1/traces", "sample_ratio": 0.1}
    config = parse_config({"sage_settings": {"tracing": {**section, "service_name": "edge"}}})
    assert config.tracing == TracingConfig(True, "http://c:4318/v1/traces", 0.1, "edge")


@pytest.mark.parametrize(
    ("key", "value"), [("endpoint", "collector:4318"), ("sample_ratio", 1.5), ("url", "http://c")]
)
def test_settings_that_make_no_sense(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"tracing.*{key}"):
        parse_config({"sage_settings": {"tracing": {"enabled": True, key: value}}})


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk.trace", raising=False)
    assert not parse_config({"sage_settings": {"tracing": {}}}).tracing.enabled
    with pytest.raises(MissingDependencyError, match=r"pip install 'sage-prefect\[tracing\]'|need"):
        parse_config({"sage_settings": {"tracing": {"enabled": True}}})
