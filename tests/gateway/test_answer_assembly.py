"""Whole answers out of streams (engines that abort only streams)."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.answer_assembly import AnswerAssembly


def event(content: Any) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def chunk(delta: dict[str, Any], index: int = 0, **fields: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": None, **fields}
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": [choice]})


def assembled(*events: bytes) -> dict[str, Any]:
    assembly = AnswerAssembly()
    for one in events:
        assembly.feed(one)
    assert assembly.complete
    answer: dict[str, Any] = orjson.loads(assembly.answer())
    return answer


@given(st.lists(st.text(max_size=8), max_size=5), st.lists(st.integers(1, 60), max_size=40))
def test_text_whatever_the_cuts(words: list[str], cuts: list[int]) -> None:
    stream = chunk({"role": "assistant", "content": None}) + b": ping\n\n"
    stream += b"".join(chunk({"content": word}) for word in words)
    stream += chunk({}, finish_reason="stop")
    stream += event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    stream += b"data: [DONE]\n\n"
    assembly, position = AnswerAssembly(), 0
    for size in [*cuts, len(stream)]:
        assembly.feed(stream[position : position + size])
        position += size
    answer = orjson.loads(assembly.answer())
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "".join(words) if words else None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert assembly.usage.output_tokens == 4


def test_tool_calls_and_logprobs() -> None:
    answer = assembled(
        chunk(
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}
        ),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        chunk(
            {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "1"}}]}
        ),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
        chunk({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
        chunk({"content": "b"}, logprobs={"content": [{"token": "b"}]}),
        chunk({}, finish_reason="tool_calls"),
    )
    (choice,) = answer["choices"]
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "function": {"name": "g", "arguments": "1"}},
    ]
    assert choice["message"]["content"] == "ab"
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_several_choices_and_plain_completions() -> None:
    text = [
        event({"object": "text_completion", "choices": [{"index": i, "text": t}]})
        for i, t in ((1, "x"), (0, "a"), (1, "y"))
    ]
    answer = assembled(*text, b"data: [DONE]\n\n")
    assert [choice["text"] for choice in answer["choices"]] == ["a", "xy"]
    assert answer["object"] == "text_completion"


@pytest.mark.parametrize("garbage", [b"data: {nope\n\n", b"data: [1]\n\n"])
def test_garbage(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        AnswerAssembly().feed(garbage)


async def test_the_client_gets_json_and_the_engine_streams(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, driver="llamacpp"))
    answer = await gateway.chat(temperature=0)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert answer.json()["usage"]["prompt_tokens"] == 7
    assert peer.posts[0].json["stream"] is True
    assert gateway.metric("sage_gateway_tokens_total", model="m", kind="output") == 2
    assert gateway.gateway.manager.running == 0


async def test_a_lost_client_is_noticed_in_the_middle(lab: Any) -> None:
    gone = asyncio.Event()

    async def endless(request: Any) -> None:
        await request.start_events()
        try:
            while True:
                await request.chunk(lab.delta("x"))
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    peer = await lab.peer(endless)
    gateway = await lab.gateway(lab.engine(peer, driver="llamacpp"))
    _, writer = await gateway.post_raw(orjson.dumps(lab.CHAT))
    await lab.until(lambda: peer.posts)
    writer.close()
    await asyncio.wait_for(gone.wait(), 10)
    await lab.until(lambda: gateway.gateway.manager.running == 0)


async def test_a_broken_stream_is_tried_elsewhere(lab: Any) -> None:
    async def dies(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        request.reset()

    async def garbage(request: Any) -> None:
        await request.start_events()
        await request.chunk(b"data: {nope\n\n")

    async def ends(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        await request.end_events()

    good = await lab.peer()
    for fault in (dies, garbage, ends):
        bad = await lab.peer(fault)
        gateway = await lab.gateway(
            lab.engine(bad, "bad", driver="llamacpp"),
            lab.engine(good, "good", driver="llamacpp"),
            policy="least_outstanding",  # of equal engines the first is asked first
        )
        answer = await gateway.chat()
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        assert len(bad.posts) == 1


async def test_an_error_inside_the_stream(lab: Any) -> None:
    async def refuses(request: Any) -> None:
        await request.start_events()
        await request.chunk(event({"error": {"code": 400, "message": "too long"}}))
        await request.end_events()

    peer = await lab.peer(refuses)
    gateway = await lab.gateway(lab.engine(peer, driver="llamacpp"))
    answer = await gateway.chat()
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "too long"
