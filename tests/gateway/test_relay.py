"""The good path: what goes to the engine and what comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from sage_gateway.engines import ServedModel


async def test_chat_is_forwarded_byte_for_byte(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    body = (
        b'{ "messages":[{"role":"user","content":"h\\u00e9 \xf0\x9f\x8d\x8e"}],\n'
        b'"x":1.50, "model" : "m"}'
    )
    answer = await gateway.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert peer.posts[0].body == body
    assert peer.posts[0].path == "/v1/chat/completions"
    assert answer.headers["x-sage-engine"] == "e1"
    assert float(answer.headers["x-sage-queue-ms"]) >= 0
    assert float(answer.headers["x-sage-overhead-ms"]) >= 0
    assert answer.headers["x-request-id"]


async def test_the_clients_key_never_reaches_the_engine(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, api_key="engine-key"))
    await gateway.chat(headers={"cookie": "secret=1", "traceparent": "00-ab-cd-01"})
    sent = peer.posts[0].headers
    assert sent["authorization"] == "Bearer engine-key"
    assert "cookie" not in sent
    assert sent["traceparent"] == "00-ab-cd-01"
    assert lab.KEY not in str(sent)


async def test_alias_is_spliced_and_nothing_else(lab: Any) -> None:
    peer = await lab.peer()
    served = ServedModel("alias", "chat", "org/real")
    gateway = await lab.gateway(lab.engine(peer, models=(served,)))
    body = (
        b'{"messages":[{"role":"user","content":"the \\"model\\": \\"alias\\""}],'
        b'"model":"alias","n":1e0}'
    )
    answer = await gateway.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    assert peer.posts[0].body == body.replace(b'"model":"alias"', b'"model":"org/real"')


async def test_completions_and_embeddings(lab: Any) -> None:
    peer = await lab.peer()
    models = (ServedModel("m"), ServedModel("e", "embedding"))
    gateway = await lab.gateway(lab.engine(peer, models=models))
    done = await gateway.client.post("/v1/completions", json={"model": "m", "prompt": "a"})
    assert done.status_code == 200
    embedded = await gateway.client.post("/v1/embeddings", json={"model": "e", "input": ["a", "b"]})
    assert embedded.json()["data"][0]["embedding"] == [0.1, 0.2]
    assert [request.path for request in peer.posts] == ["/v1/completions", "/v1/embeddings"]
    assert gateway.metric("sage_gateway_tokens_total", model="e", kind="prompt") == 3


async def test_connections_are_kept_alive_and_shared(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    for _ in range(5):
        assert (await gateway.chat()).status_code == 200
    assert peer.connections == 1


@pytest.mark.parametrize("asked", [True, False])
async def test_stream_and_its_usage(lab: Any, asked: bool) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    extra = {"stream_options": {"include_usage": True}} if asked else {}
    answer = await gateway.chat(stream=True, **extra)
    assert answer.headers["content-type"] == "text/event-stream"
    expected = lab.delta("Hel") + lab.delta("lo") + lab.FINISH
    assert answer.content == expected + (lab.USAGE if asked else b"") + lab.DONE
    assert peer.posts[0].json["stream_options"] == {"include_usage": True}
    assert gateway.metric("sage_gateway_tokens_total", model="m", kind="prompt") == 7
    assert gateway.metric("sage_gateway_tokens_total", model="m", kind="output") == 2


async def test_a_chunk_leaves_when_it_arrives(lab: Any) -> None:
    step = asyncio.Semaphore(0)

    async def slow(request: Any) -> None:
        await request.start_events()
        for word in ("a", "b", "c"):
            await request.chunk(lab.delta(word))
            await step.acquire()
        await request.chunk(lab.FINISH + lab.DONE)
        await request.end_events()

    peer = await lab.peer(slow)
    gateway = await lab.gateway(lab.engine(peer))
    body = orjson.dumps({**lab.CHAT, "stream": True})
    reader, writer = await gateway.post_raw(body)
    await reader.readuntil(b"\r\n\r\n")
    for word in ("a", "b", "c"):
        # The engine sends the next word only after the client has this one.
        piece = await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)
        assert b'"content":"%b"' % word.encode() in piece
        step.release()
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert b"[DONE]" in rest
    writer.close()
    await writer.wait_closed()


async def test_request_id_of_the_client_is_kept_when_sane(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    kept = await gateway.chat(headers={"x-request-id": "my-id.1"})
    assert kept.headers["x-request-id"] == "my-id.1"
    assert peer.posts[0].headers["x-request-id"] == "my-id.1"
    replaced = await gateway.chat(headers={"x-request-id": "x" * 200})
    assert replaced.headers["x-request-id"].startswith("req-")


async def test_two_requests_with_one_id_at_once(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    answers = await asyncio.gather(*(gateway.chat(headers={"x-request-id": "same"}) for _ in "123"))
    assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_models(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer), lab.engine(peer, "e2", models=(ServedModel("org/m2"),))
    )
    listed = (await gateway.client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["m", "org/m2"]
    assert (await gateway.client.get("/v1/models/org/m2")).json()["id"] == "org/m2"
    missing = await gateway.client.get("/v1/models/nope")
    assert missing.status_code == 404
    assert "m, org/m2" in missing.json()["error"]["message"]


async def test_an_answer_too_big_to_hold_is_passed_on_in_pieces(lab: Any) -> None:
    from sage_gateway.config import ServerLimits

    big = b'{"data":"' + b"x" * 300_000 + b'","usage":{"prompt_tokens":5}}'

    async def answer(request: Any) -> None:
        await request.answer(200, big)

    peer = await lab.peer(answer)
    gateway = await lab.gateway(
        lab.engine(peer), server=ServerLimits(max_buffered_answer_bytes=10_000)
    )
    got = await gateway.chat()
    assert got.content == big
    assert gateway.metric("sage_gateway_tokens_total", model="m", kind="prompt") == 5


async def test_least_outstanding_spreads_and_windows_hold(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    one, two = await lab.peer(held), await lab.peer(held)
    gateway = await lab.gateway(
        lab.engine(one, "one", max_concurrency=2), lab.engine(two, "two", max_concurrency=2)
    )
    calls = [asyncio.ensure_future(gateway.chat()) for _ in range(6)]
    await lab.until(lambda: len(one.posts) + len(two.posts) == 4)
    await lab.until(lambda: gateway.gateway.manager.queued == 2)
    assert len(one.posts) == len(two.posts) == 2
    assert gateway.metric("sage_gateway_queue_depth") == 2
    assert gateway.metric("sage_gateway_in_flight", engine="one") == 2
    gate.set()
    answers = await asyncio.gather(*calls)
    assert all(answer.status_code == 200 for answer in answers)
    assert sorted(float(a.headers["x-sage-queue-ms"]) > 0.5 for a in answers).count(True) >= 2
    assert gateway.gateway.manager.running == 0
