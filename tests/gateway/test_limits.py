"""Bad requests and abusive clients: a clear 4xx, bounded in size and time."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from sage_gateway.config import ServerLimits
from sage_prefect.control_plane.events import Limits

JSON = {"content-type": "application/json"}


async def status_line(reader: asyncio.StreamReader) -> bytes:
    return (await asyncio.wait_for(reader.readline(), 10)).split(b" ", 1)[1].strip()


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        (b"", None, "empty"),
        (b'{"model": "m",\n "messages": [}', None, "line 2, column 15"),
        (b"[1]", None, "JSON array"),
        (b'"text"', None, "JSON string"),
        (b'{"messages": []}', "model", "missing"),
        (b'{"model": "", "messages": [1]}', "model", "empty"),
        (b'{"model": 3, "messages": [1]}', "model", "JSON number"),
        (b'{"model": "m"}', "messages", "missing"),
        (b'{"model": "m", "messages": []}', "messages", "an empty list"),
        (b'{"model": "m", "messages": "hi"}', "messages", "JSON string"),
        (b'{"model": "m", "messages": [1], "stream": "yes"}', "stream", "true or false"),
        (b'{"model": "m", "messages": [1], "stream_options": 1}', "stream_options", "an object"),
        (b'{"model": "\xff"}', None, "UTF-8"),
        (b"[" * 100_000, None, "JSON"),
    ],
)
async def test_malformed_bodies(lab: Any, body: bytes, param: str | None, part: str) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_required_fields_of_the_other_routes(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    for path, param in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        missing = await gateway.client.post(path, json={"model": "m"})
        assert missing.json()["error"]["param"] == param
        wrong = await gateway.client.post(path, json={"model": "m", param: 5})
        assert wrong.status_code == 400


async def test_unknown_model_lists_the_known(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.chat(model="nope")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "Known models: m." in error["message"]
    assert gateway.metric(
        "sage_gateway_requests_total", route="chat", model="unknown", status="4xx"
    )


async def test_model_of_another_mode(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.client.post("/v1/embeddings", json={"model": "m", "input": "a"})
    assert answer.status_code == 400
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


async def test_content_type(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.client.post("/v1/chat/completions", data={"a": "b"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "header",
    [
        {"x-sage-band": "urgent"},
        {"x-sage-deadline-ms": "-5"},
        {"x-slo-ttft-ms": "0"},
        {"x-slo-tpot-ms": "86400001"},
    ],
)
async def test_wrong_headers_of_ours(lab: Any, header: dict[str, str]) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.chat(headers=header)
    assert answer.status_code == 400
    assert next(iter(header)) in answer.json()["error"]["message"]


async def test_a_priority_that_is_no_integer(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    answer = await gateway.chat(priority="high")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_field"
    assert "'priority'" in answer.json()["error"]["message"]


async def test_declared_body_too_large(lab: Any) -> None:
    gateway = await lab.gateway(
        lab.engine("http://127.0.0.1:9/v1"), server=ServerLimits(max_body_bytes=1000)
    )
    answer = await gateway.chat(messages=[{"role": "user", "content": "x" * 200_000}])
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["message"]
    # The connection and the gateway live on.
    assert (await gateway.client.get("/health")).status_code == 200


async def test_chunked_body_too_large_is_refused_while_it_comes(lab: Any) -> None:
    gateway = await lab.gateway(
        lab.engine("http://127.0.0.1:9/v1"), server=ServerLimits(max_body_bytes=100_000)
    )
    reader, writer = await gateway.connect()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.KEY}\r\n"
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    )
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    for _ in range(10):
        writer.write(chunk)
    # No end of the body was sent: the answer comes in its middle.
    assert await status_line(reader) == b"413 Request Entity Too Large"
    writer.close()
    await writer.wait_closed()


async def test_slow_body(lab: Any) -> None:
    gateway = await lab.gateway(
        lab.engine("http://127.0.0.1:9/v1"), server=ServerLimits(read_timeout_s=0.05)
    )
    reader, writer = await gateway.connect()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.KEY}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n{".encode()
    )
    assert await status_line(reader) == b"408 Request Timeout"
    writer.close()
    await writer.wait_closed()


async def test_keys(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://127.0.0.1:9/v1"))
    for given in ("Bearer wrong", "Basic abc", "", "Bearer"):
        answer = await gateway.client.post(
            "/v1/chat/completions", json=lab.CHAT, headers={"authorization": given}
        )
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert lab.KEY not in answer.text
    for path in ("/v1/models", "/v1/management/engines"):
        answer = await gateway.client.get(path, headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401


async def test_paths_and_methods(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    for path in ("/", "/v1/unload", "/v1/chat/completions/", "/v1/../slots", "/v1/management"):
        assert (await gateway.client.get(path)).status_code == 404, path
    wrong = await gateway.client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert (await gateway.client.delete("/v1/models")).status_code == 405
    assert not peer.requests
    assert (await gateway.client.head("/health")).status_code == 200


async def test_full_queue(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(
        lab.engine(peer, max_concurrency=1), scheduling=Limits(max_queued_requests=1)
    )
    calls = [asyncio.ensure_future(gateway.chat()) for _ in range(2)]
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    refused = await gateway.chat()
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    gate.set()
    assert [(await call).status_code for call in calls] == [200, 200]


async def test_queue_timeout_and_deadline(lab: Any) -> None:
    async def held(request: Any) -> None:
        await request.until_gone()

    peer = await lab.peer(held)
    gateway = await lab.gateway(
        lab.engine(peer, max_concurrency=1), scheduling=Limits(queue_timeout_s=0.1)
    )
    _, writer = await gateway.post_raw(orjson.dumps(lab.CHAT))
    await lab.until(lambda: peer.posts)
    late = await gateway.chat()
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "queue_timeout"
    assert "retry-after" in late.headers
    sooner = await gateway.chat(headers={"x-sage-deadline-ms": "10"})
    assert sooner.status_code == 503
    writer.close()
    await lab.until(lambda: gateway.gateway.manager.running == 0)


async def test_metrics_need_a_key_off_loopback(lab: Any) -> None:
    inside = await lab.gateway()
    assert (await inside.client.get("/metrics", headers={"authorization": ""})).status_code == 200
    outside = await lab.gateway(on_loopback=False)
    for path in ("/metrics", "/docs", "/openapi.json"):
        refused = await outside.client.get(path, headers={"authorization": ""})
        assert refused.status_code == 401
    assert (await outside.client.get("/metrics")).status_code == 200


async def test_no_secret_shows_anywhere(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def leaks(request: Any) -> None:
        request.reset()

    peer = await lab.peer(leaks)
    gateway = await lab.gateway(lab.engine(peer, api_key="engine-secret"))
    with caplog.at_level("DEBUG"):
        answer = await gateway.chat(messages=[{"role": "user", "content": "private text"}])
        metrics = await gateway.client.get("/metrics")
        engines = await gateway.client.get("/v1/management/engines")
    everything = answer.text + metrics.text + engines.text + caplog.text
    for secret in (lab.KEY, "engine-secret", "private text"):
        assert secret not in everything
