"""The application and its batcher, with a small encoder that the tests can hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from sage_prefect.platform.embedding_server.app import AppOptions, EmbeddingApp
from sage_prefect.platform.embedding_server.batcher import Batcher
from sage_prefect.platform.embedding_server.encoder import Tokens
from sage_prefect.platform.embedding_server.metrics import Metrics
from sage_prefect.platform.embedding_server.request import Limits


class LetterEncoder:
    """A token per character, 8 at most; the embedding is (first token, number of tokens).

    While ``gate`` is closed, :meth:`encode` waits. ``batches`` records what it was given.
    """

    device = "cpu"
    dimension = 2
    max_tokens = 8

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()
        self.batches: list[list[list[int]]] = []

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        return [Tokens([ord(c) for c in text[:8]], len(text) > 8) for text in texts]

    def encode(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        self.batches.append(list(batch))
        self.busy.set()
        assert self.gate.wait(30)
        if any(ord("!") in ids for ids in batch):
            raise ValueError("a '!' in the batch")
        rows = [[ids[0] if ids else 0, len(ids)] for ids in batch]
        return np.array(rows, dtype=np.float32)

    def bound_threads(self, threads: int) -> None:
        pass


class Served:
    """An application over the letter encoder, and a client of it."""

    def __init__(self, options: dict[str, Any], workers: int, budget: int) -> None:
        self.encoder = LetterEncoder()
        self.metrics = Metrics()
        self.app = EmbeddingApp(AppOptions(("m",), **options), self.metrics)
        self.batcher = Batcher(
            self.encoder, workers=workers, token_budget=budget, metrics=self.metrics
        )
        self.app.serve_with(self.encoder, self.batcher)
        transport = httpx.ASGITransport(self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def embed(self, *texts: str, **fields: Any) -> httpx.Response:
        body = {"model": "m", "input": list(texts)} | fields
        return await self.http.post("/v1/embeddings", json=body)

    async def until(self, condition: Callable[[], bool]) -> None:
        async def poll() -> None:
            while not condition():  # noqa: ASYNC110 - counts of the server, not ours to set
                await asyncio.sleep(0.001)

        await asyncio.wait_for(poll(), 30)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"sage_embedding_{name}", labels)


Make = Callable[..., Served]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Served] = []

    def start(workers: int = 1, budget: int = 64, **options: Any) -> Served:
        made.append(Served(options, workers, budget))
        return made[-1]

    yield start
    for served in made:
        served.encoder.gate.set()
        await served.http.aclose()
        served.app.close()


def vectors(response: httpx.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/score"])
async def test_an_embedding_model_scores_no_pairs(make: Make, path: str) -> None:
    response = await make().http.post(path, json={"model": "m", "query": "q", "documents": ["a"]})
    assert response.status_code == 400
    assert "/v1/embeddings" in response.json()["error"]["message"]


async def test_embeds_in_order(make: Make) -> None:
    served = make()
    response = await served.embed("abc", "", "zz")
    assert vectors(response) == [[97, 3], [0, 0], [122, 2]]
    assert response.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert "queue;dur=" in response.headers["server-timing"]
    assert served.metric("texts_total") == 3
    assert served.metric("requests_total", status="200") == 1


async def test_what_waits_together_runs_together(make: Make) -> None:
    served = make()
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.embed("a"))
    await served.until(served.encoder.busy.is_set)
    others = [asyncio.ensure_future(served.embed(letter)) for letter in "bcdef"]
    await served.until(lambda: served.metric("queued_texts") == 5)
    served.encoder.gate.set()
    assert vectors(await first) == [[97, 1]]
    assert [vectors(r)[0][0] for r in await asyncio.gather(*others)] == [98, 99, 100, 101, 102]
    assert [len(batch) for batch in served.encoder.batches] == [1, 5]


async def test_idle_workers_share_a_big_request(make: Make) -> None:
    served = make(workers=2, budget=10_000)
    response = await served.embed(*["abcdefgh"] * 64)
    assert len(vectors(response)) == 64
    assert len(served.encoder.batches) == 2


async def test_a_client_that_has_gone_frees_its_place(make: Make) -> None:
    served = make()
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.embed("a"))
    await served.until(served.encoder.busy.is_set)

    gone = asyncio.Event()
    body = orjson.dumps({"model": "m", "input": ["b", "c"]})
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there for {message}")

    scope = {"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}
    call = asyncio.ensure_future(served.app(scope, receive, send))
    await served.until(lambda: served.metric("queued_texts") == 2)
    gone.set()
    await call
    assert served.metric("queued_texts") == 0
    assert served.metric("dropped_texts_total") == 2
    assert served.metric("requests_total", status="499") == 1
    served.encoder.gate.set()
    await first
    assert served.encoder.batches == [[[97]]]


async def test_a_failing_batch_fails_its_requests_only(make: Make) -> None:
    served = make(budget=1)
    bad, good = await asyncio.gather(served.embed("!", "x"), served.embed("y"))
    assert bad.status_code == 500
    assert bad.json()["error"]["type"] == "server_error"
    assert "ValueError" in bad.json()["error"]["message"]
    assert vectors(good) == [[121, 1]]
    assert vectors(await served.embed("z")) == [[122, 1]]
    assert served.batcher.queued_tokens == 0


async def test_full_queue_says_when_to_come_back(make: Make) -> None:
    served = make(max_queued_tokens=6)
    assert len(vectors(await served.embed("abcdefgh", "abcdefgh"))) == 2  # alone: always taken
    served.encoder.gate.clear()
    served.encoder.busy.clear()
    first = asyncio.ensure_future(served.embed("abcdef"))
    await served.until(served.encoder.busy.is_set)
    refused = await served.embed("b")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    served.encoder.gate.set()
    assert (await first).status_code == 200


async def test_too_many_requests(make: Make) -> None:
    served = make(max_requests=1)
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.embed("a"))
    await served.until(served.encoder.busy.is_set)
    assert (await served.embed("b")).status_code == 429
    served.encoder.gate.set()
    assert (await first).status_code == 200


async def test_too_long(make: Make) -> None:
    cut = await make().embed("abcdefghijkl")
    assert vectors(cut) == [[97, 8]]
    assert cut.json()["usage"]["prompt_tokens"] == 8
    refused = await make(too_long="error").embed("a", "abcdefghijkl")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "'input[1]'" in refused.json()["error"]["message"]


async def test_body_limits(make: Make) -> None:
    served = make(limits=Limits(max_body_bytes=100), body_timeout_s=0.05)
    response = await served.http.post("/v1/embeddings", content=b"x" * 101)
    assert (response.status_code, response.headers["connection"]) == (413, "close")

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10

    response = await served.http.post("/v1/embeddings", content=parts())
    assert response.status_code == 413

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}
    await served.app(scope, receive, send)
    assert sent[0]["status"] == 408


async def test_key(make: Make) -> None:
    served = make(api_key="right")
    assert (await served.embed("a")).status_code == 401
    wrong = await served.http.get("/v1/models", headers={"authorization": "Bearer wröng".encode()})
    assert wrong.status_code == 401
    right = await served.http.get("/v1/models", headers={"authorization": "Bearer right"})
    assert right.json()["data"][0]["id"] == "m"
    assert (await served.http.get("/health")).status_code == 200
    assert "right" not in repr(served.app.options)


async def test_health_while_loading_and_draining() -> None:
    app = EmbeddingApp(AppOptions(("m",)), Metrics())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        loading = await client.get("/health")
        assert (loading.status_code, loading.json()["status"]) == (503, "loading")
        early = await client.post("/v1/embeddings", json={"model": "m", "input": "a"})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert (await client.get("/metrics")).status_code == 200
        app.draining = True
        assert (await client.get("/health")).json()["status"] == "draining"
    app.close()


async def test_routes(make: Make) -> None:
    served = make()
    assert (await served.http.get("/nothing")).status_code == 404
    assert (await served.http.get("/v1/embeddings")).status_code == 405
    assert "sage_embedding_queued_tokens" in (await served.http.get("/metrics")).text


async def test_base64(make: Make) -> None:
    response = await make().embed("a", encoding_format="base64")
    assert response.json()["data"][0]["embedding"] == "AADCQgAAgD8="


async def test_warm_up_reaches_every_worker(make: Make) -> None:
    served = make(workers=3)
    await served.batcher.warm_up()
    assert len(served.encoder.batches) == 3
