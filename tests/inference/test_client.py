"""Both clients against servers that behave, misbehave and vanish."""

from __future__ import annotations

import base64
import socket
import threading
from typing import Any

import numpy as np
import orjson
import pytest

from sage_prefect.common import endpoints
from sage_prefect.common.errors import (
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    RequestRejected,
)
from sage_prefect.inference import CallContext

ANSWER = {
    "model": "m",
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def ok(exchange: Any) -> None:
    exchange.answer(200, ANSWER, x_sage_engine="llm")


def frame(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"model": "m", "choices": [choice], **more}) + b"\n\n"


# -- calls ----------------------------------------------------------------------------------


def test_chat(serve: Any, connect: Any) -> None:
    server = serve(ok)
    client = connect(server.url, api_key="k")
    result = client.chat("hi", model="m", temperature=0, stop=["x"])
    assert (result.text, result.engine, result.usage.completion_tokens) == ("hello", "llm", 2)
    assert result.latency_ms > 0
    assert result.ttft_ms is None
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["x-request-id"] == result.request_id
    assert request.json() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "stop": ["x"],
    }


def test_generate_and_models(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        if exchange.path == "/v1/models":
            exchange.answer(200, {"data": [{"id": "a"}]})
        else:
            exchange.answer(200, {"choices": [{"text": f"{exchange.json()['prompt']}!"}]})

    client = connect(serve(script).url)
    assert client.generate("go", model="m", max_tokens=4).text == "go!"
    assert client.models() == ["a"]


def test_context_of_the_call_wins_over_that_of_the_client(serve: Any, connect: Any) -> None:
    server = serve(ok)
    client = connect(server.url, context=CallContext(band="batch", tenant="t"))
    client.chat("hi", model="m", context=CallContext(band="interactive", deadline_ms=500))
    headers = server.requests[0].headers
    assert headers["x-sage-band"] == "interactive"
    assert headers["x-sage-tenant"] == "t"
    assert headers["x-sage-deadline-ms"] == "500"


# -- streams --------------------------------------------------------------------------------


def test_stream(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream(x_sage_engine="llm")
        whole = frame("hel") + frame("lo ü") + frame(finish="length")
        whole += frame(usage={"prompt_tokens": 4, "completion_tokens": 2}) + b"data: [DONE]\n\n"
        for byte in whole:
            exchange.send(bytes([byte]))
        exchange.end_stream()

    server = serve(script)
    stream = connect(server.url).chat_stream("hi", model="m")
    assert "".join(chunk.text for chunk in stream) == "hello ü"
    result = stream.result()
    assert (result.text, result.finish_reason, result.engine) == ("hello ü", "length", "llm")
    assert result.usage.prompt_tokens == 4
    assert 0 < result.ttft_ms <= result.latency_ms
    body = server.requests[0].json()
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_a_stream_is_not_sent_before_it_is_read(serve: Any, connect: Any) -> None:
    server = serve(ok)
    connect(server.url).chat_stream("hi", model="m").close()
    assert server.requests == []


def test_stream_that_ends_after_its_finish_reason_is_whole(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        exchange.send(frame("a") + frame(finish="stop"))
        exchange.drop()

    assert connect(serve(script).url).chat_stream("hi", model="m").result().text == "a"


@pytest.mark.parametrize("how", ["ends", "drops"])
def test_stream_cut_off_never_looks_finished(serve: Any, connect: Any, how: str) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        exchange.send(frame("a") + frame("b"))
        exchange.end_stream() if how == "ends" else exchange.drop()

    server = serve(script)
    stream = connect(server.url, retries=3).chat_stream("hi", model="m")
    assert next(stream).text == "a"
    with pytest.raises(EngineUnavailable, match="before the answer was finished"):
        stream.result()
    assert stream.partial().text == "ab"
    assert len(server.requests) == 1  # not repeated: text had come


def test_error_event_in_a_stream(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        exchange.send(frame("a"))
        exchange.send(b'data: {"error": {"message": "engine died", "type": "engine_error"}}\n\n')
        exchange.end_stream()

    with pytest.raises(EngineUnavailable, match="engine died"):
        connect(serve(script).url).chat_stream("hi", model="m").result()


def test_closing_a_stream_ends_it_on_the_server(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        while not exchange.server.release.is_set():
            exchange.send(frame("x" * 1000))

    server = serve(script)
    stream = connect(server.url).chat_stream("hi", model="m")
    assert next(stream).text
    stream.close()
    assert server.client_gone.wait(10)
    assert list(stream) == []


# -- failures -------------------------------------------------------------------------------


def test_nobody_listens(connect: Any) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = connect(f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            client.chat("hi", model="m")


def test_rejected_is_not_repeated(serve: Any, connect: Any) -> None:
    error = {"error": {"message": "wrong key", "code": "invalid_api_key"}}
    server = serve(lambda exchange: exchange.answer(401, error))
    with pytest.raises(RequestRejected, match="wrong key") as caught:
        connect(server.url, retries=3).chat("hi", model="m")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert "SAGE_API_KEY" in (caught.value.hint or "")
    assert len(server.requests) == 1


def test_overload_is_repeated_when_the_server_says(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        if exchange.number < 3:
            exchange.answer(429, {"error": {"message": "full"}}, retry_after_ms="1")
        else:
            ok(exchange)

    server = serve(script)
    assert connect(server.url, retries=2).chat("hi", model="m").text == "hello"
    assert [r.headers.get("x-sage-attempt") for r in server.requests] == [None, "1", "2"]
    assert len({r.headers["x-request-id"] for r in server.requests}) == 1


def test_overload_beyond_the_retries_says_when_to_come_back(serve: Any, connect: Any) -> None:
    server = serve(lambda exchange: exchange.answer(429, {}, retry_after="3600"))
    with pytest.raises(EngineOverloaded) as caught:
        connect(server.url, retries=5).chat("hi", model="m")
    assert caught.value.retry_after == 3600.0
    assert len(server.requests) == 1  # an hour does not fit into the call's time


def test_a_dropped_connection_is_repeated(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.drop() if exchange.number == 1 else ok(exchange)

    server = serve(script)
    assert connect(server.url, retries=1).chat("hi", model="m").text == "hello"
    assert len(server.requests) == 2


def test_retries_stop_when_the_budget_is_spent(serve: Any, connect: Any) -> None:
    server = serve(lambda exchange: exchange.answer(503, {}, retry_after_ms="1"))
    client = connect(server.url, retries=2)
    for _ in range(20):
        with pytest.raises(EngineUnavailable):
            client.chat("hi", model="m")
    retries = sum(1 for r in server.requests if r.headers.get("x-sage-attempt"))
    # 5 of the floor, a fifth of 20 calls, and what the floor regains while this runs.
    assert retries < 20


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_in_time(serve: Any, connect: Any, stream: bool) -> None:
    server = serve(lambda exchange: exchange.server.release.wait())
    client = connect(server.url, timeout_s=0.3, retries=3)
    with pytest.raises(EngineTimeout, match="did not answer within"):
        client.chat_stream("hi", model="m").result() if stream else client.chat("hi", model="m")
    assert len(server.requests) == 1  # not repeated: the engine may still be at it


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_drips_runs_out_of_the_total_time(
    serve: Any, connect: Any, stream: bool
) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        while not exchange.server.release.wait(0.02):
            exchange.send(b": still here\n\n" if stream else b" ")

    client = connect(serve(script).url, timeout_s=0.4)
    with pytest.raises(EngineTimeout, match=r"did not finish within 0\.4 s"):
        client.chat_stream("hi", model="m").result() if stream else client.chat("hi", model="m")


def test_timeout_of_one_call(serve: Any, connect: Any) -> None:
    server = serve(lambda exchange: exchange.server.release.wait())
    client = connect(server.url)
    with pytest.raises(EngineTimeout):
        client.chat("hi", model="m", context=CallContext(timeout_s=0.2))


def test_an_answer_that_breaks_off(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        exchange.start_stream()
        exchange.send(b'{"choices": [')
        exchange.drop()

    server = serve(script)
    with pytest.raises(EngineUnavailable):
        connect(server.url, retries=3).chat("hi", model="m")
    assert len(server.requests) == 1


def test_closed_client(serve: Any, connect: Any) -> None:
    client = connect(serve(ok).url)
    client.chat("hi", model="m")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.chat("hi", model="m")


# -- embeddings -----------------------------------------------------------------------------


def embed_lengths(exchange: Any) -> None:
    """The 'embedding' of a text is its length and its first character's code."""
    rows = [[len(text), ord(text[0])] for text in exchange.json()["input"]]
    data = [
        {"index": i, "embedding": base64.b64encode(np.array(row, "<f4").tobytes()).decode()}
        for i, row in enumerate(rows)
    ]
    exchange.answer(200, {"data": data[::-1]})


def test_embed_splits_and_keeps_the_order(serve: Any, connect: Any) -> None:
    server = serve(embed_lengths)
    client = connect(server.url, embed_texts=3, embed_characters=40, embed_concurrency=2)
    texts = [chr(97 + i % 26) * (i + 1) for i in range(20)]
    vectors = client.embed(texts, model="e")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[len(text), ord(text[0])] for text in texts])
    assert len(server.requests) > 7
    assert all(request.json()["encoding_format"] == "base64" for request in server.requests)


def test_embed_nothing(serve: Any, connect: Any) -> None:
    server = serve(embed_lengths)
    assert connect(server.url).embed([], model="e").shape == (0, 0)
    assert server.requests == []


def test_embed_fails_as_one(serve: Any, connect: Any) -> None:
    def script(exchange: Any) -> None:
        if "x" in exchange.json()["input"]:
            exchange.answer(400, {"error": {"message": "no x"}})
        else:
            embed_lengths(exchange)

    client = connect(serve(script).url, embed_texts=1)
    with pytest.raises(RequestRejected, match="no x"):
        client.embed(["a", "x", *"bcdefgh"], model="e")
    np.testing.assert_array_equal(client.embed(["a"], model="e"), [[1, 97]])


def test_embed_sends_at_most_so_many_at_once(serve: Any, connect: Any) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def script(exchange: Any) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        both.wait(10)  # passes only when two requests are there together
        with lock:
            at_once -= 1
        embed_lengths(exchange)

    client = connect(serve(script).url, embed_texts=1, embed_concurrency=2)
    assert client.embed(list("abcdef"), model="e").shape == (6, 2)
    assert most == 2


# -- finding the gateway --------------------------------------------------------------------


def health(exchange: Any) -> None:
    if exchange.path == "/health":
        exchange.answer(200, {"status": "ok"})
    else:
        ok(exchange)


def test_gateway_of_the_registry(serve: Any, connect: Any, monkeypatch: Any) -> None:
    server = serve(health)
    endpoints.publish("gateway", server.url)
    monkeypatch.setenv("SAGE_PORT_GATEWAY", "1")
    client = connect()
    assert client.chat("hi", model="m").text == "hello"
    assert client.config.base_url == f"{server.url}/v1"


def test_gateway_on_its_port(serve: Any, connect: Any, monkeypatch: Any) -> None:
    server = serve(health)
    endpoints.publish("gateway", "http://127.0.0.1:1")  # left behind by one that was killed
    monkeypatch.setenv("SAGE_PORT_GATEWAY", str(server.server_port))
    assert connect().chat("hi", model="m").text == "hello"


@pytest.mark.parametrize(
    ("status", "content"),
    [(404, {}), (302, {}), (200, b"<html>"), (200, {"service": "sage-embedding"}), (200, [1])],
)
def test_another_program_on_the_port_is_no_gateway(
    serve: Any, connect: Any, monkeypatch: Any, status: int, content: Any
) -> None:
    server = serve(lambda exchange: exchange.answer(status, content))
    monkeypatch.setenv("SAGE_PORT_GATEWAY", str(server.server_port))
    with pytest.raises(EngineUnavailable, match="no gateway answers") as caught:
        connect().chat("hi", model="m")
    assert "sage up" in (caught.value.hint or "")
    assert all(request.path == "/health" for request in server.requests)
    assert not any("authorization" in request.headers for request in server.requests)
