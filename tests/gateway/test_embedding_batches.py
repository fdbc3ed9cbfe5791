"""Embedding calls that travel together: what the engine is sent, and what each client gets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest

from sage_gateway.engines import ServedModel

MODEL = ServedModel("embed", "embedding")


def vector_of(text: Any) -> bytes:
    """An input's vector as this engine writes it: no other input has the same, and no encoder
    would write these numbers so."""
    digest = hashlib.sha256(orjson.dumps(text)).digest()
    return b"[%b]" % b", ".join(b"%d.0%03de-02" % (n % 7, n) for n in digest[:6])


@dataclass
class Embedder:
    """An engine whose calls wait until they are let go, and which can be told to misbehave."""

    lab: Any
    held: bool = True
    calls: list[Any] = field(default_factory=list)
    refuse: Callable[[list[Any]], int | None] = lambda inputs: None
    rewrite: Callable[[bytes], bytes] = lambda answer: answer
    tokens_each: int | None = 5
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    done: int = 0

    async def __call__(self, request: Any) -> None:
        if request.method == "GET":
            await request.answer(200, b"{}")
            return
        body = request.json
        self.calls.append(body)
        if self.held:
            await self.gate.wait()
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if inputs and isinstance(inputs[0], int):
            inputs = [inputs]
        status = self.refuse(inputs)
        if status is not None:
            error = {"error": {"message": f"cannot embed {inputs[0]!r}", "code": "bad"}}
            await request.answer(status, orjson.dumps(error))
            return
        items = [
            b'{"object":"embedding","index":%d,"embedding":%b}' % (i, vector_of(one))
            for i, one in enumerate(inputs)
        ]
        usage = b""
        if self.tokens_each is not None:
            count = self.tokens_each * len(inputs)
            usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (count, count)
        answer = b'{"object":"list","data":[%b],"model":"inside"%b}' % (b",".join(items), usage)
        await request.answer(200, self.rewrite(answer))
        self.done += 1

    def release(self) -> None:
        self.held = False
        self.gate.set()


@dataclass
class Site:
    """A gateway with policy hybrid before embedders of one call at a time."""

    running: Any
    embedders: list[Embedder]
    lab: Any

    async def embed(self, content: Any, **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        body = {"model": "embed", "input": content, **fields}
        answer: httpx.Response = await self.running.client.post(
            "/v1/embeddings", json=body, headers=headers
        )
        return answer

    async def together(self, *calls: Awaitable[httpx.Response]) -> list[httpx.Response]:
        """Send calls so that they wait together: a first one keeps each engine busy."""
        manager = self.running.gateway.manager
        first = []
        for embedder in self.embedders:
            first.append(asyncio.ensure_future(self.embed(f"busy {len(first)}")))
            await self.lab.until(lambda e=embedder: e.calls, "the engine is busy")
        tasks = []
        for call in calls:
            queued = manager.queued
            tasks.append(asyncio.ensure_future(call))
            await self.lab.until(lambda q=queued: manager.queued > q, "the call waits")
        for embedder in self.embedders:
            embedder.release()
        await asyncio.gather(*first)
        return list(await asyncio.gather(*tasks))

    def sent(self, at: int = 0) -> list[Any]:
        """Inputs of the calls after the first one."""
        return [call["input"] for call in self.embedders[at].calls[1:]]


@pytest.fixture
async def make_site(lab: Any) -> Callable[..., Awaitable[Site]]:
    async def make(engines: int = 1, **fields: Any) -> Site:
        embedders, configs = [], []
        for number in range(engines):
            embedder = Embedder(lab)
            peer = await lab.peer(embedder)
            settings = {"models": (MODEL,), "max_concurrency": 1, "max_batch_inputs": 64, **fields}
            configs.append(lab.engine(peer, f"e{number}", **settings))
            embedders.append(embedder)
        running = await lab.gateway(*configs, policy="hybrid")
        return Site(running, embedders, lab)

    return make


def vectors(answer: httpx.Response) -> list[bytes]:
    """The bytes of the vectors, in order of their places in the answer."""
    content = answer.content
    found = []
    position = content.find(b'"embedding":')
    while position >= 0:
        start = position + len(b'"embedding":')
        if content[start : start + 1] == b"[":
            found.append(content[start : content.index(b"]", start) + 1])
        position = content.find(b'"embedding":', start)
    return found


async def test_calls_that_wait_go_in_one_and_each_gets_its_own(make_site: Any) -> None:
    site = await make_site()
    answers = await site.together(
        site.embed("alone"), site.embed(["one", "two", "three"]), site.embed("last")
    )
    (inputs,) = site.sent()
    assert sorted(inputs) == ["alone", "last", "one", "three", "two"]
    for answer, texts in zip(answers, (["alone"], ["one", "two", "three"], ["last"]), strict=True):
        assert answer.status_code == 200, answer.text
        assert vectors(answer) == [vector_of(text) for text in texts]
        content = answer.json()
        assert [item["index"] for item in content["data"]] == list(range(len(texts)))
        assert content["model"] == "embed"
        assert content["object"] == "list"
        assert answer.headers["x-sage-engine"] == "e0"
        assert float(answer.headers["x-sage-queue-ms"]) > 0
        assert float(answer.headers["x-sage-overhead-ms"]) >= 0
    assert sum(answer.json()["usage"]["prompt_tokens"] for answer in answers) == 25
    assert site.running.metric("sage_gateway_batch_inputs_count", engine="e0") == 1
    manager = site.running.gateway.manager
    assert manager.queued == manager.running == 0


async def test_one_call_alone_goes_in_its_own_bytes(make_site: Any) -> None:
    site = await make_site()
    site.embedders[0].release()
    answer = await site.embed(["a", "b"], user="u")
    assert answer.json()["model"] == "inside"  # the engine's own answer
    assert site.embedders[0].calls == [{"model": "embed", "input": ["a", "b"], "user": "u"}]
    assert answer.json()["usage"]["prompt_tokens"] == 10
    assert site.running.metric("sage_gateway_batch_inputs_count", engine="e0") == 0
