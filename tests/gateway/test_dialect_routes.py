"""Routes beyond chat through a gateway on real sockets: native, translated, or 501."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from sage_gateway.engines import ServedModel
from sage_prefect.control_plane.events import Arrival, Cancel, Done

MESSAGE = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hello"}],
}
RESPONSE = {"model": "m", "input": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
    "/v1/messages/count_tokens": {"model": "m", "messages": MESSAGE["messages"]},
    "/v1/rerank": {"model": "r", "query": "q", "documents": ["a", "b"]},
    "/v1/score": {"model": "r", "text_1": "q", "text_2": ["a", "b"]},
    "/tokenize": {"model": "m", "prompt": "hello"},
    "/detokenize": {"model": "m", "tokens": [1, 2]},
}
STREAMS = {"/v1/responses": RESPONSE, "/v1/messages": MESSAGE}
BOTH = (ServedModel("m"), ServedModel("r", "rerank"))


def events_of(text: str) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def answering(answer: bytes, status: int = 200) -> Callable[[Any], Awaitable[None]]:
    async def behave(request: Any) -> None:
        if request.method == "GET":
            await request.answer(200, b"{}")
        else:
            await request.answer(status, answer)

    return behave


def streaming(*pieces: bytes, end: bool = True) -> Callable[[Any], Awaitable[None]]:
    async def behave(request: Any) -> None:
        if request.method == "GET":
            await request.answer(200, b"{}")
            return
        await request.start_events()
        for piece in pieces:
            await request.chunk(piece)
        if end:
            await request.end_events()
        else:
            request.reset()

    return behave


@pytest.mark.parametrize("path", BODIES)
async def test_an_engine_that_has_the_route_gets_the_clients_bytes(lab: Any, path: str) -> None:
    answer = b'{"usage":{"input_tokens":7,"output_tokens":2},"anything":[1.50]}'
    peer = await lab.peer(answering(answer))
    gateway = await lab.gateway(lab.engine(peer, driver="vllm", models=BOTH))
    raw = orjson.dumps(BODIES[path])[:-1] + b', "unknown" : 1.50 }'
    reply = await gateway.client.post(
        path, content=raw, headers={"content-type": "application/json"}
    )
    assert (reply.status_code, reply.content) == (200, answer)
    assert peer.posts[0].body == raw
    assert peer.posts[0].path == path
    assert reply.headers["x-sage-engine"] == "e1"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/score", "/tokenize", "/detokenize"])
async def test_the_scheduler_and_the_metrics_see_every_route(lab: Any, path: str) -> None:
    peer = await lab.peer(answering(b"{}"))
    gateway = await lab.gateway(lab.engine(peer, driver="vllm", models=BOTH), policy="fifo")
    heard = lab.overhear(gateway)
    body = {**BODIES[path], "priority": 500}
    assert (await gateway.client.post(path, json=body)).status_code == 200
    assert [type(event) for event in heard][:2] == [Arrival, Done]
    info = heard[0].request
    assert info.band.name == "BATCH"
    assert info.kind == ("rerank" if BODIES[path]["model"] == "r" else "completion")
    if info.kind == "completion":
        assert info.output_estimate == 1
    label = path.rsplit("/", 1)[1]
    model = BODIES[path]["model"]
    assert (
        gateway.metric("sage_gateway_requests_total", route=label, model=model, status="2xx") == 1
    )


@pytest.mark.parametrize("path", STREAMS)
async def test_prompts_are_measured_in_every_api(lab: Any, path: str) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    heard = lab.overhear(gateway)
    long = "why " * 300
    body = {**STREAMS[path], "stream": True}
    body["max_tokens" if "messages" in body else "max_output_tokens"] = 5
    if "input" in body:
        body["input"] = long
    else:
        body["messages"] = [{"role": "user", "content": long}]
    await gateway.client.post(path, json=body)
    arrivals = [event.request for event in heard if isinstance(event, Arrival)]
    assert arrivals[0].prompt_tokens > 200
    assert arrivals[0].max_tokens == 5
    assert len(arrivals[0].prefix) == 4
    assert arrivals[0].stream
    done = next(event for event in heard if isinstance(event, Done))
    assert (done.prompt_tokens, done.output_tokens) == (7, 2)


async def test_messages_whole_and_streamed(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    whole = (await gateway.client.post("/v1/messages", json=MESSAGE)).json()
    assert whole["content"] == [{"type": "text", "text": "Hello"}]
    assert whole["usage"]["output_tokens"] == 2
    assert peer.posts[0].path == "/v1/chat/completions"
    assert peer.posts[0].json == {
        "model": "m",
        "max_tokens": 9,
        "messages": MESSAGE["messages"],
    }
    reply = await gateway.client.post("/v1/messages", json={**MESSAGE, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    events = events_of(reply.text)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["usage"]["input_tokens"] == 7
    assert reply.text.endswith('data: {"type":"message_stop"}\n\n')


async def test_responses_whole_and_streamed(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    whole = (await gateway.client.post("/v1/responses", json=RESPONSE)).json()
    assert whole["output"][0]["content"][0]["text"] == "Hello"
    assert whole["usage"]["total_tokens"] == 9
    reply = await gateway.client.post("/v1/responses", json={**RESPONSE, "stream": True})
    events = events_of(reply.text)
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["input_tokens"] == 7
    assert "[DONE]" not in reply.text


async def test_a_server_that_aborts_only_streams_is_asked_to_stream(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer, driver="llamacpp", models=(ServedModel("m", upstream="up"),))
    )
    whole = (await gateway.client.post("/v1/messages", json=MESSAGE)).json()
    assert (whole["content"][0]["text"], whole["model"]) == ("Hello", "m")
    sent = peer.posts[0].json
    assert (sent["stream"], sent["model"]) == (True, "up")


async def test_tokens_through_llama_cpp(lab: Any) -> None:
    async def behave(request: Any) -> None:
        if request.path == "/tokenize":
            await request.answer(200, b'{"tokens":[5,6]}')
        elif request.path == "/detokenize":
            await request.answer(200, b'{"content":"hello"}')
        else:
            await request.answer(200, b'{"input_tokens":31}')

    peer = await lab.peer(behave)
    gateway = await lab.gateway(lab.engine(peer, driver="llamacpp"))
    found = await gateway.client.post("/tokenize", json=BODIES["/tokenize"])
    assert found.json()["tokens"] == [5, 6]
    found = await gateway.client.post("/detokenize", json=BODIES["/detokenize"])
    assert found.json() == {"prompt": "hello"}
    path = "/v1/messages/count_tokens"
    assert (await gateway.client.post(path, json=BODIES[path])).json() == {"input_tokens": 31}
    assert peer.posts[-1].path == path


async def test_score_over_rerank(lab: Any) -> None:
    answer = {"results": [{"index": i, "relevance_score": 0.5 - i} for i in (1, 0)]}
    peer = await lab.peer(answering(orjson.dumps(answer)))
    gateway = await lab.gateway(
        lab.engine(peer, driver="llamacpp", models=(ServedModel("r", "rerank"),))
    )
    found = (await gateway.client.post("/v1/score", json=BODIES["/v1/score"])).json()
    assert [item["score"] for item in found["data"]] == [0.5, -0.5]
    assert peer.posts[0].path == "/v1/rerank"
    same = await gateway.client.post("/v1/rerank", json=BODIES["/v1/rerank"])
    assert same.json() == answer


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize", "/detokenize"])
async def test_what_an_engine_lacks_is_501(lab: Any, path: str) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    heard = lab.overhear(gateway)
    reply = await gateway.client.post(path, json=BODIES[path])
    assert reply.status_code == 501
    message = reply.json()["error"]["message"]
    assert "'e1'" in message
    assert f"no {path}" in message
    assert reply.headers["x-should-retry"] == "false"
    assert not peer.posts
    assert isinstance(heard[-1], Cancel)
    declared = await lab.gateway(
        lab.engine(peer, routes=frozenset({"count_tokens", "tokenize", "detokenize"}))
    )
    assert (await declared.client.post(path, json=BODIES[path])).status_code == 200
    assert peer.posts[0].path == path


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/messages", {"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
async def test_what_cannot_be_translated_is_501_and_passes_where_native(
    lab: Any, path: str, fields: dict[str, Any], param: str
) -> None:
    peer = await lab.peer(answering(b"{}"))
    gateway = await lab.gateway(lab.engine(peer))
    reply = await gateway.client.post(path, json={**STREAMS[path], **fields})
    assert reply.status_code == 501
    assert param in reply.json()["error"]["message"]
    assert "'e1'" in reply.json()["error"]["message"]
    native = await lab.gateway(lab.engine(peer, driver="vllm"))
    assert (await native.client.post(path, json={**STREAMS[path], **fields})).status_code == 200


async def test_arguments_that_are_no_json_are_the_models_fault(lab: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{nope"}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    peer = await lab.peer(answering(orjson.dumps({"choices": [choice]})))
    gateway = await lab.gateway(lab.engine(peer))
    heard = lab.overhear(gateway)
    reply = await gateway.client.post("/v1/messages", json=MESSAGE)
    assert reply.status_code == 502
    assert "no JSON object" in reply.json()["error"]["message"]
    assert [type(event) for event in heard] == [Arrival, Done]
    assert len(peer.posts) == 1


async def test_pictures_pass_to_an_engine_that_scores_them(lab: Any) -> None:
    peer = await lab.peer(answering(b"{}"))
    gateway = await lab.gateway(lab.engine(peer, driver="vllm", models=BOTH))
    picture = {"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    for path, body in (
        ("/v1/rerank", {"model": "r", "query": picture, "documents": picture}),
        ("/v1/score", {"model": "r", "queries": picture, "items": [picture]}),
    ):
        assert (await gateway.client.post(path, json=body)).status_code == 200


async def test_errors_of_messages_have_anthropics_shape(lab: Any) -> None:
    peer = await lab.peer(answering(b'{"error":{"message":"no such thing"}}', 400))
    gateway = await lab.gateway(lab.engine(peer))

    async def error(status: int, headers: Any = None, **fields: Any) -> dict[str, Any]:
        body = {**MESSAGE, **fields}
        reply = await gateway.client.post("/v1/messages", json=body, headers=headers or {})
        assert reply.status_code == status
        content = reply.json()
        assert content["type"] == "error"
        return content["error"]

    assert await error(400) == {"type": "invalid_request_error", "message": "no such thing"}
    assert (await error(404, model="nope"))["type"] == "not_found_error"
    assert "max_tokens" in (await error(400, max_tokens=None))["message"]
    assert "messages" in (await error(400, messages=[]))["message"]
    wrong = await error(401, {"authorization": "Bearer wrong"})
    assert wrong["type"] == "authentication_error"


async def test_anthropics_key_header(lab: Any) -> None:
    import httpx

    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        path = "/v1/messages?beta=true"
        good = await client.post(path, json=MESSAGE, headers={"x-api-key": lab.KEY})
        bad = await client.post(path, json=MESSAGE, headers={"x-api-key": "wrong"})
    assert (good.status_code, bad.status_code) == (200, 401)


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("native", [False, True])
async def test_a_stream_that_breaks_off_ends_with_the_apis_event(
    lab: Any, path: str, native: bool
) -> None:
    if native:
        kind = "response.created" if path == "/v1/responses" else "message_start"
        first = orjson.dumps({"type": kind, "sequence_number": 0, "response": {"id": "x"}})
        piece = b"event: %b\ndata: %b\n\n" % (kind.encode(), first)
    else:
        piece = lab.delta("Hel")
    peer = await lab.peer(streaming(piece, b'data: {"half', end=False))
    gateway = await lab.gateway(lab.engine(peer, driver="vllm" if native else "openai"))
    reply = await gateway.client.post(path, json={**STREAMS[path], "stream": True})
    assert reply.status_code == 200
    last = events_of(reply.text)[-1]
    if path == "/v1/responses":
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        message = last["response"]["error"]["message"]
    else:
        assert last["type"] == "error"
        message = last["error"]["message"]
    assert "Engine 'e1'" in message
    assert "half" not in reply.text


@pytest.mark.parametrize("path", STREAMS)
async def test_an_error_inside_a_chat_stream_is_told(lab: Any, path: str) -> None:
    broken = b'data: {"error":{"message":"out of memory"}}\n\n'
    peer = await lab.peer(streaming(lab.delta("Hel"), broken))
    gateway = await lab.gateway(lab.engine(peer))
    reply = await gateway.client.post(path, json={**STREAMS[path], "stream": True})
    assert "out of memory" in orjson.dumps(events_of(reply.text)[-1]).decode()


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_answers_nonsense_is_not_the_last_word(
    lab: Any, path: str, stream: bool
) -> None:
    bad = await lab.peer(answering(b'{"choices":"none"}'))
    good = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"), lab.engine(good, "good"), policy="round_robin"
    )
    for _ in range(2):
        reply = await gateway.client.post(path, json={**STREAMS[path], "stream": stream})
        assert reply.status_code == 200
        assert reply.headers["x-sage-engine"] == "good"
    assert bad.posts


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_is_left_when_the_client_goes(lab: Any, stream: bool) -> None:
    gone = []

    async def hang(request: Any) -> None:
        if request.method == "GET":
            await request.answer(200, b"{}")
            return
        if stream:
            await request.start_events()
            await request.chunk(lab.delta("Hel"))
        await request.until_gone()
        gone.append(request.path)

    peer = await lab.peer(hang)
    gateway = await lab.gateway(lab.engine(peer))
    body = orjson.dumps({**MESSAGE, "stream": stream})
    reader, writer = await gateway.post_raw(body, "/v1/messages")
    if stream:
        await reader.readuntil(b"content_block_delta")
    await lab.until(lambda: peer.posts, "the engine got the request")
    writer.close()
    await lab.until(lambda: gone, "the engine was left")


async def test_a_model_of_another_mode_is_named(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, models=BOTH))
    reply = await gateway.client.post("/v1/rerank", json={**BODIES["/v1/rerank"], "model": "m"})
    assert reply.status_code == 400
    assert "/v1/chat/completions" in reply.json()["error"]["message"]
    reply = await gateway.client.post("/v1/messages", json={**MESSAGE, "model": "r"})
    assert "/v1/rerank" in reply.json()["error"]["message"]


async def test_a_rerank_call_under_merging_policies(lab: Any) -> None:
    peer = await lab.peer(answering(b'{"model":"up","results":[]}'))
    served = ServedModel("r", "rerank", "up")
    gateway = await lab.gateway(lab.engine(peer, models=(served,)), policy="hybrid")
    reply = await gateway.client.post("/v1/rerank", json=BODIES["/v1/rerank"])
    assert reply.json() == {"model": "r", "results": []}
    assert peer.posts[0].json == {**BODIES["/v1/rerank"], "model": "up"}
