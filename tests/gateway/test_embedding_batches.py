"""Embedding calls that travel together: what the engine is sent, and what each client gets."""

from __future__ import annotations

import asyncio
import hashlib
import random
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
    peers: list[Any]
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
        embedders, peers, configs = [], [], []
        for number in range(engines):
            embedder = Embedder(lab)
            peer = await lab.peer(embedder)
            settings = {"models": (MODEL,), "max_concurrency": 1, "max_batch_inputs": 64, **fields}
            configs.append(lab.engine(peer, f"e{number}", **settings))
            embedders.append(embedder)
            peers.append(peer)
        running = await lab.gateway(*configs, policy="hybrid")
        return Site(running, embedders, peers, lab)

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


@pytest.mark.parametrize("merged", [False, True])
async def test_the_model_keeps_the_name_that_the_client_used(make_site: Any, merged: bool) -> None:
    site = await make_site(models=(ServedModel("embed", "embedding", "inside"),))
    calls = [site.embed("a"), site.embed("b")] if merged else [site.embed(["a", "b"])]
    answers = await site.together(*calls)
    assert {answer.json()["model"] for answer in answers} == {"embed"}
    assert {call["model"] for call in site.embedders[0].calls} == {"inside"}


async def test_equal_inputs_are_sent_once_and_get_equal_bytes(make_site: Any) -> None:
    site = await make_site()
    answers = await site.together(site.embed(["x", "y", "x"]), site.embed("x"))
    (inputs,) = site.sent()
    assert sorted(inputs) == ["x", "y"]
    assert vectors(answers[0]) == [vector_of("x"), vector_of("y"), vector_of("x")]
    assert vectors(answers[1]) == [vector_of("x")]
    used = [answer.json()["usage"]["prompt_tokens"] for answer in answers]
    assert sum(used) == 10  # what the engine counted
    assert min(used) > 0


async def test_a_long_call_goes_in_several_and_comes_back_in_order(make_site: Any) -> None:
    site = await make_site(max_batch_inputs=4)
    texts = [f"text {number} " + "long " * (number % 3) for number in range(10)]
    (answer,) = await site.together(site.embed(texts))
    assert [len(inputs) for inputs in site.sent()] == [4, 4, 2]
    assert vectors(answer) == [vector_of(text) for text in texts]
    assert answer.json()["usage"] == {"prompt_tokens": 50, "total_tokens": 50}


async def test_unlike_calls_travel_apart(make_site: Any) -> None:
    site = await make_site()
    answers = await site.together(
        site.embed("a"),
        site.embed("b", dimensions=4),
        site.embed("c", user="u"),
        site.embed([1, 2, 3]),
        site.embed([[4, 5], [6]]),
        site.embed("d", dimensions=4),
    )
    sent = sorted(map(str, site.sent()))
    assert sent == sorted(map(str, [["b", "d"], "a", "c", [[1, 2, 3], [4, 5], [6]]]))
    assert {call.get("dimensions") for call in site.embedders[0].calls[1:]} == {None, 4}
    expected = [["a"], ["b"], ["c"], [[1, 2, 3]], [[4, 5], [6]], ["d"]]
    for answer, inputs in zip(answers, expected, strict=True):
        assert vectors(answer) == [vector_of(one) for one in inputs]


async def test_inputs_travel_in_their_own_bytes(make_site: Any) -> None:
    site = await make_site()
    raw = rb'{"input" : [ "caf\u00e9 \/ \ud83d\ude00", "tab\t" ] , "model":"embed"}'
    client = site.running.client
    headers = {"content-type": "application/json"}
    answers = await site.together(
        client.post("/v1/embeddings", content=raw, headers=headers), site.embed("b")
    )
    peer_body = site.embedders[0].calls[1]
    assert sorted(peer_body["input"]) == sorted(["café / 😀", "tab\t", "b"])
    assert vectors(answers[0]) == [vector_of("café / 😀"), vector_of("tab\t")]


async def test_base64_is_passed_on(make_site: Any) -> None:
    site = await make_site()
    site.embedders[0].rewrite = _as_base64
    answers = await site.together(
        site.embed("a", encoding_format="base64"), site.embed("b", encoding_format="base64")
    )
    assert len(site.sent()) == 1
    assert [answer.json()["data"][0]["embedding"] for answer in answers] == ["AAEC0", "AAEC1"]


def _as_base64(answer: bytes) -> bytes:
    content = orjson.loads(answer)
    for item in content["data"]:
        item["embedding"] = f"AAEC{item['index']}"
    return orjson.dumps(content)


async def test_an_engine_that_counts_no_tokens(make_site: Any) -> None:
    site = await make_site()
    site.embedders[0].tokens_each = None
    answers = await site.together(site.embed("a"), site.embed("b"))
    assert all("usage" not in answer.json() for answer in answers)


async def test_a_bad_input_is_isolated_and_its_client_hears_why(make_site: Any) -> None:
    site = await make_site()
    site.embedders[0].refuse = lambda inputs: 400 if "bad" in inputs else None
    answers = await site.together(
        site.embed("a"), site.embed(["b", "bad", "c"]), site.embed(["d", "e"])
    )
    assert [answer.status_code for answer in answers] == [200, 400, 200]
    assert answers[1].json()["error"]["message"] == "cannot embed 'bad'"
    assert vectors(answers[2]) == [vector_of("d"), vector_of("e")]
    manager = site.running.gateway.manager
    assert manager.queued == manager.running == 0


async def test_errors_of_many_inputs_show_nobody_anothers_text(make_site: Any) -> None:
    site = await make_site()
    site.embedders[0].refuse = lambda inputs: 401 if len(inputs) > 1 else None
    answers = await site.together(site.embed("secret"), site.embed("other"))
    for answer in answers:
        assert answer.status_code == 401
        assert "secret" not in answer.text
        assert "other" not in answer.text


def _without_last(answer: bytes) -> bytes:
    content = orjson.loads(answer)
    content["data"].pop()
    return orjson.dumps(content)


@pytest.mark.parametrize(
    ("rewrite", "why"),
    [
        (lambda answer: answer[:-1], "not JSON"),
        (lambda answer: b"[]", "no JSON object"),
        (lambda answer: b'{"data":{}}', "list 'data'"),
        (lambda answer: answer.replace(b'"index":1,', b'"index":0,'), "under the index 0"),
        (_without_last, "1 vectors to 2 inputs"),
        (lambda answer: answer.replace(b'"index":1,"embedding"', b'"index":1,"x"'), "a vector 1"),
        (lambda answer: answer.replace(b", ", b", [", 1), "not JSON"),
        (lambda answer: answer.replace(b"02]", b'02,"a"]', 1), "a vector 0"),
        (lambda answer: answer.replace(b"02]", b"02,null]", 1), "something that is no vector"),
        (lambda answer: answer.replace(b"02]", b"02,1]", 1), "unlike lengths"),
    ],
)
async def test_garbage_never_reaches_a_client(
    make_site: Any, rewrite: Callable[[bytes], bytes], why: str
) -> None:
    site = await make_site()
    site.embedders[0].rewrite = lambda answer: rewrite(answer) if b'"index":1' in answer else answer
    answers = await site.together(site.embed("a"), site.embed("b"))
    for answer in answers:
        assert answer.status_code == 502
        assert why in answer.json()["error"]["message"]
    cause = {"engine": "e0", "cause": "protocol"}
    assert site.running.metric("sage_gateway_upstream_failures_total", **cause) == 1


async def test_what_one_engine_fails_another_does(make_site: Any) -> None:
    site = await make_site(2)
    for embedder in site.embedders:
        embedder.refuse = lambda inputs: None
    broken, fine = site.embedders
    first = asyncio.ensure_future(site.embed("busy 0"))
    await site.lab.until(lambda: broken.calls or fine.calls)
    if fine.calls:
        broken, fine = fine, broken
    second = asyncio.ensure_future(site.embed("busy 1"))
    await site.lab.until(lambda: fine.calls)
    manager = site.running.gateway.manager
    waiting = [asyncio.ensure_future(site.embed(text)) for text in ("a", "b", "c")]
    await site.lab.until(lambda: manager.queued == 3)
    broken.refuse = lambda inputs: 503 if "a" in inputs else None
    broken.release()
    await site.lab.until(lambda: len(broken.calls) == 2)
    fine.release()
    answers = await asyncio.gather(*waiting)
    assert [vectors(answer) for answer in answers] == [[vector_of(text)] for text in "abc"]
    assert {answer.headers["x-sage-engine"] for answer in answers} == {
        f"e{site.embedders.index(fine)}"
    }
    await asyncio.gather(first, second)


async def test_a_dropped_connection_fails_the_batch(make_site: Any) -> None:
    site = await make_site()
    embedder = site.embedders[0]

    async def drop(request: Any) -> None:
        if request.method == "POST" and b'"a"' in request.body:
            request.reset()
            return
        await embedder(request)

    site.peers[0].behaviour = drop
    answers = await site.together(site.embed("a"), site.embed("b"))
    assert [answer.status_code for answer in answers] == [502, 502]
    assert "closed the connection" in answers[0].json()["error"]["message"]


async def test_who_has_gone_is_left_out(make_site: Any) -> None:
    site = await make_site()
    embedder = site.embedders[0]
    first = asyncio.ensure_future(site.embed("busy"))
    await site.lab.until(lambda: embedder.calls)
    manager = site.running.gateway.manager
    body = orjson.dumps({"model": "embed", "input": ["mine", "too"]})
    _, writer = await site.running.post_raw(body, "/v1/embeddings")
    stays = asyncio.ensure_future(site.embed("stays"))
    await site.lab.until(lambda: manager.queued == 2)
    writer.close()
    await site.lab.until(lambda: manager.queued == 1)
    embedder.release()
    assert vectors(await stays) == [vector_of("stays")]
    assert site.sent() == ["stays"]
    await first


async def test_a_batch_that_nobody_waits_for_is_given_up(make_site: Any) -> None:
    site = await make_site()
    embedder = site.embedders[0]
    first = asyncio.ensure_future(site.embed("busy"))
    await site.lab.until(lambda: embedder.calls)
    manager = site.running.gateway.manager
    writers = []
    for text in ("a", "b"):
        body = orjson.dumps({"model": "embed", "input": text})
        _, writer = await site.running.post_raw(body, "/v1/embeddings")
        writers.append(writer)
    await site.lab.until(lambda: manager.queued == 2)
    gate, embedder.gate = embedder.gate, asyncio.Event()
    gate.set()
    await first
    await site.lab.until(lambda: len(embedder.calls) == 2)
    writers[0].close()
    await site.lab.until(lambda: manager.running == 1)
    assert len(manager.ledger.get("e0").batches) == 1
    writers[1].close()
    await site.lab.until(lambda: manager.running == 0)
    assert not manager.ledger.get("e0").batches
    await site.lab.until(lambda: not site.running.gateway.engines.get("e0").pool.open_connections)
    embedder.release()
    assert (await site.embed("next")).status_code == 200


async def test_a_plain_policy_sends_each_call_as_it_came(make_site: Any) -> None:
    site = await make_site()
    site.running.gateway.scheduler.set_policy("least_outstanding")
    answers = await site.together(site.embed(["a", "a"]), site.embed("b"))
    assert site.sent() == [["a", "a"], "b"]
    assert all(answer.json()["model"] == "inside" for answer in answers)


async def test_a_policy_changes_while_calls_wait_and_travel(make_site: Any) -> None:
    site = await make_site(max_batch_inputs=2)
    embedder = site.embedders[0]
    gateway = site.running.gateway
    first = asyncio.ensure_future(site.embed(["busy", "in two", "batches"]))
    await site.lab.until(lambda: embedder.calls)
    waiting = asyncio.ensure_future(site.embed(["a", "b", "c"]))
    await site.lab.until(lambda: gateway.manager.queued == 1)
    gateway.scheduler.set_policy("fifo")
    embedder.release()
    answers = await asyncio.gather(first, waiting)
    assert ["a", "b", "c"] in [call["input"] for call in embedder.calls]  # whole, as it came
    assert vectors(answers[0]) == [vector_of(text) for text in ("busy", "in two", "batches")]
    assert vectors(answers[1]) == [vector_of(text) for text in "abc"]


async def test_explain_tells_of_batches(make_site: Any) -> None:
    site = await make_site()
    answers = await site.together(
        site.embed("a", headers={"x-request-id": "mine"}), site.embed("b")
    )
    assert answers[0].headers["x-request-id"] == "mine"
    story = site.running.gateway.manager.explain("mine")
    assert [decision["what"] for decision in story["decisions"]] == ["queued", "batched", "done"]
    assert story["decisions"][1]["inputs"] == 2


async def test_an_engine_removed_with_its_batch_inside(make_site: Any) -> None:
    site = await make_site()
    embedder = site.embedders[0]
    gateway = site.running.gateway
    first = asyncio.ensure_future(site.embed("busy"))
    await site.lab.until(lambda: embedder.calls)
    waiting = [asyncio.ensure_future(site.embed(text)) for text in "ab"]
    await site.lab.until(lambda: gateway.manager.queued == 2)
    gate, embedder.gate = embedder.gate, asyncio.Event()
    gate.set()
    await first
    await site.lab.until(lambda: len(embedder.calls) == 2)
    assert gateway.remove("e0")
    assert gateway.manager.ledger.get("e0") is not None  # not empty yet
    embedder.release()
    answers = await asyncio.gather(*waiting)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert gateway.manager.ledger.get("e0") is None


@pytest.mark.parametrize("seed", range(4))
async def test_in_a_storm_nobody_gets_anothers_vector(make_site: Any, seed: int) -> None:
    """Engines refuse, break off, lie and die; clients leave; the policy changes; engines go."""
    chance = random.Random(seed)
    site = await make_site(3, max_batch_inputs=8)
    gateway = site.running.gateway

    def misbehave(embedder: Embedder) -> None:
        embedder.refuse = lambda inputs: (
            400 if "poison" in inputs else chance.choice([None] * 12 + [429, 500, 503, 413, 401])
        )
        embedder.rewrite = lambda answer: chance.choice(
            [answer] * 12 + [answer[:-2], answer.replace(b'"index":0', b'"index":1'), b"{}"]
        )

    for embedder, peer in zip(site.embedders, site.peers, strict=True):
        misbehave(embedder)

        async def behaviour(request: Any, embedder: Embedder = embedder) -> None:
            if request.method == "POST" and chance.random() < 0.05:
                request.reset()
                return
            await embedder(request)

        peer.behaviour = behaviour

    served: list[httpx.Response] = []

    async def client(number: int) -> None:
        texts = [f"{number % 40}-{i}" for i in range(chance.randrange(1, 20))]
        if number % 17 == 0:
            texts[chance.randrange(len(texts))] = "poison"
        body = orjson.dumps({"model": "embed", "input": texts})
        if number % 7 == 0:
            _, writer = await site.running.post_raw(body, "/v1/embeddings")
            writer.transport.abort()
            return
        answer = await site.embed(texts)
        if answer.status_code == 200:
            assert "poison" not in texts
            own = [vector_of(text) for text in texts]
            assert set(vectors(answer)) <= set(own)
            if len(vectors(answer)) == len(own):  # a call alone passes as the engine answered it
                assert vectors(answer) == own
                served.append(answer)
        else:
            assert answer.status_code in (400, 401, 413, 429, 500, 502, 503)
            assert answer.json()["error"]["message"]

    clients = [asyncio.ensure_future(client(number)) for number in range(150)]
    await site.lab.until(lambda: gateway.manager.queued > 20)
    for embedder in site.embedders:
        embedder.release()
    for policy in ("fifo", "hybrid", "least_outstanding", "fair", "hybrid"):
        gateway.scheduler.set_policy(policy)
        await asyncio.sleep(0)
    gateway.remove("e2")
    await asyncio.gather(*clients)
    await site.lab.until(lambda: not gateway.manager.running and not gateway.manager.queued)
    assert len(served) > 20
    assert any(answer.headers["x-sage-engine"] != "e2" for answer in served)
    # A batch that was given up ends in a turn of its own, after its requests.
    await site.lab.until(lambda: not gateway.courier._trips, "no batch is left")
    assert not gateway.scheduler._alone
    assert not gateway.scheduler._tickets
