"""Bodies and answers."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest

from sage_prefect.common.errors import EngineUnavailable
from sage_prefect.inference.protocol import (
    CallContext,
    Usage,
    chat_body,
    completion_body,
    parse_answer,
    parse_chunk,
    parse_models,
)


def test_temperature_zero_is_sent_and_none_is_not() -> None:
    body = orjson.loads(chat_body("hi", "m", temperature=0, max_tokens=None, top_p=0.5, seed=0))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "top_p": 0.5,
        "seed": 0,
    }


def test_messages_pass_unchanged() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text"}]}]
    assert orjson.loads(chat_body(messages, "m"))["messages"] == messages
    assert orjson.loads(completion_body("p", "m"))["prompt"] == "p"


def test_what_is_no_json_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="JSON"):
        chat_body("hi", "m", stop=object())


def test_context_becomes_headers() -> None:
    context = CallContext(
        band="batch",
        tenant="t",
        deadline_ms=1_500_000,
        ttft_slo_ms=0.5,
        session_id="s",
        request_id="r",
        headers={"x-other": "1"},
    )
    assert context.as_headers() == {
        "x-sage-band": "batch",
        "x-sage-tenant": "t",
        "x-sage-deadline-ms": "1500000",
        "x-slo-ttft-ms": "0.5",
        "x-session-id": "s",
        "x-request-id": "r",
        "x-other": "1",
    }
    assert CallContext().as_headers() == {}


@pytest.mark.parametrize("tenant", ["a\r\nx-evil: 1", "käse"])
def test_no_header_is_smuggled_in(tenant: str) -> None:
    with pytest.raises(ValueError, match="x-sage-tenant"):
        CallContext(tenant=tenant)


def test_answer() -> None:
    body = {
        "model": "m",
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    headers = {"x-sage-engine": "llm", "x-sage-queue-ms": "1.5", "x-request-id": "there"}
    result = parse_answer(orjson.dumps(body), headers=headers, latency_ms=9.0, request_id="here")
    assert (result.text, result.model, result.finish_reason) == ("hello", "m", "stop")
    assert result.usage == Usage(3, 2)
    assert result.usage.total_tokens == 5
    assert (result.engine, result.queue_ms, result.request_id) == ("llm", 1.5, "there")
    assert result.raw == body


def test_answer_of_the_completions_route_and_of_tools() -> None:
    completion = orjson.dumps({"choices": [{"text": "abc"}]})
    assert parse_answer(completion, headers={}, latency_ms=1, request_id=None).text == "abc"
    tools = orjson.dumps({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]})
    assert parse_answer(tools, headers={}, latency_ms=1, request_id=None).text == ""


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}'])
def test_what_is_no_answer_is_an_error(content: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="no chat completion"):
        parse_answer(content, headers={}, latency_ms=1, request_id=None)


def test_chunks() -> None:
    (chunk,) = parse_chunk('{"model": "m", "choices": [{"index": 1, "delta": {"content": "x"}}]}')
    assert (chunk.text, chunk.model, chunk.index) == ("x", "m", 1)
    (usage,) = parse_chunk('{"choices": [], "usage": {"prompt_tokens": 1}}')
    assert usage.usage == Usage(1, 0)
    with pytest.raises(EngineUnavailable):
        parse_chunk("[1]")
    with pytest.raises(EngineUnavailable):
        parse_chunk('{"choices": [1]}')


def test_models() -> None:
    assert parse_models(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    with pytest.raises(EngineUnavailable):
        parse_models(b'{"data": 1}')


def test_base64_is_what_openai_means() -> None:
    # Guards the tests that build answers by hand.
    vector = np.array([1.0, -2.5], dtype="<f4")
    assert base64.b64encode(vector.tobytes()) == b"AACAPwAAIMA="
