"""The embedding server's cross-encoder mode: a tiny model of random weights, through the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform.embedding_server.app import AppOptions, EmbeddingApp
from sage_prefect.platform.embedding_server.batcher import Batcher
from sage_prefect.platform.embedding_server.cross_encoder import CrossEncoder, PairIds
from sage_prefect.platform.embedding_server.metrics import Metrics
from sage_prefect.platform.embedding_server.request import Limits
from sage_prefect.platform.embedding_server.server import load_cross_encoder
from sage_prefect.platform.model_files import detect_mode

DOCUMENTS = ["abd", "zzzzzz", "", "abc", "q" * 100]


@pytest.fixture(scope="module")
def encoder(tiny_reranker: Path) -> CrossEncoder:
    loaded = load_cross_encoder(tiny_reranker, "cpu")
    assert isinstance(loaded, CrossEncoder)
    return loaded


@pytest.fixture(scope="module")
def expected(tiny_reranker: Path) -> Any:
    """``sentence_transformers``'s own scores."""
    from sentence_transformers import CrossEncoder as Reference

    reference = Reference(str(tiny_reranker), device="cpu", local_files_only=True)

    def scores(*pairs: tuple[str, str]) -> list[float]:
        return [float(score) for score in reference.predict(list(pairs))]

    return scores


@pytest.fixture
async def client(encoder: CrossEncoder) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics()
    app = EmbeddingApp(AppOptions(("r",), limits=Limits(max_inputs=8)), metrics)
    batcher = Batcher(encoder, workers=2, token_budget=48, metrics=metrics)
    await batcher.warm_up()
    app.serve_with(encoder, batcher)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made
    app.close()


def test_scores_equal_those_of_sentence_transformers(encoder: CrossEncoder, expected: Any) -> None:
    pairs = [("abc", document) for document in DOCUMENTS] + [("x" * 60, "y" * 60), ("", "")]
    tokens = encoder.tokenize_pairs(pairs)
    assert [pair.truncated for pair in tokens] == [False] * 4 + [True, True, False]
    assert all(len(pair.ids) <= 32 for pair in tokens)
    assert isinstance(tokens[0].ids, PairIds)
    assert list(tokens[0].ids.types) == [0] * 5 + [1] * 4
    found = encoder.encode([pair.ids for pair in tokens])
    assert found.shape == (7, 1)
    assert np.allclose(found[:, 0], expected(*pairs), atol=1e-6)
    assert np.ptp(found[:4]) > 0.01
    with pytest.raises(TypeError, match="no pair"):
        encoder.encode([[2, 3]])


async def test_rerank(client: httpx.AsyncClient, expected: Any) -> None:
    body = {"model": "r", "query": "abc", "documents": DOCUMENTS}
    reply = await client.post("/v1/rerank", json=body)
    assert reply.status_code == 200, reply.text
    content = reply.json()
    scores = expected(*(("abc", document) for document in DOCUMENTS))
    order = sorted(range(5), key=lambda i: -scores[i])
    assert [result["index"] for result in content["results"]] == order
    for result in content["results"]:
        assert result["relevance_score"] == pytest.approx(scores[result["index"]], abs=1e-6)
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert content["model"] == "r"
    assert content["usage"] == {"prompt_tokens": 9 + 12 + 6 + 9 + 32, "total_tokens": 68}
    assert "inference;dur=" in reply.headers["server-timing"]
    best = await client.post(
        "/v1/rerank",
        json={
            **body,
            "documents": [{"text": text} for text in DOCUMENTS],
            "top_n": 2,
            "return_documents": False,
        },
    )
    assert best.json()["results"] == [
        {key: result[key] for key in ("index", "relevance_score")}
        for result in content["results"][:2]
    ]


async def test_score(client: httpx.AsyncClient, expected: Any) -> None:
    for first, second in (
        ("abc", "abd"),
        ("abc", ["abd", "zz"]),
        (["abc", "q"], ["abd", "zz"]),
        (["abc"], ["abd", "zz"]),
    ):
        reply = await client.post(
            "/v1/score", json={"model": "r", "text_1": first, "text_2": second}
        )
        assert reply.status_code == 200, reply.text
        content = reply.json()
        many = [second] if isinstance(second, str) else second
        one = [first] if isinstance(first, str) else first
        pairs = list(zip(one * (len(many) // len(one)), many, strict=True))
        assert [item["score"] for item in content["data"]] == pytest.approx(
            expected(*pairs), abs=1e-6
        )
        assert [item["index"] for item in content["data"]] == list(range(len(many)))
        assert (content["object"], content["data"][0]["object"]) == ("list", "score")


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        ("rerank", {"query": 3}, "query", "a number"),
        ("rerank", {"documents": []}, "documents", "at least one"),
        ("rerank", {"documents": "x"}, "documents", "at least one"),
        ("rerank", {"documents": ["a", {"image": "x"}]}, "documents", r"documents\[1\]"),
        ("rerank", {"documents": ["a"] * 9}, "documents", "more than 8"),
        ("rerank", {"top_n": 0}, "top_n", "above 0"),
        ("rerank", {"return_documents": "no"}, "return_documents", "true or false"),
        ("score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1", "2 texts"),
        ("score", {"text_1": []}, "text_1", "at least one"),
        ("score", {"text_2": None}, "text_2", "at least one"),
        ("rerank", {"model": "nope"}, "model", "not served here"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str, said: str
) -> None:
    good = {"model": "r", "query": "q", "documents": ["a"], "text_1": "q", "text_2": "a"}
    reply = await client.post(f"/v1/{path}", json={**good, **fields})
    assert reply.status_code == (404 if param == "model" else 400)
    error = reply.json()["error"]
    assert error["param"] == param
    import re

    assert re.search(said, error["message"])


async def test_embeddings_are_refused_by_name(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/embeddings", json={"model": "r", "input": "a"})
    assert reply.status_code == 400
    assert "/v1/rerank" in reply.json()["error"]["message"]
    listed = (await client.get("/v1/models")).json()["data"][0]
    assert (listed["max_model_len"], listed["embedding_dimension"]) == (32, None)


def test_what_is_no_reranker(
    tiny_reranker: Path, make_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    assert detect_mode(tiny_reranker, "safetensors") == "rerank"
    classifier = make_classifier(tmp_path / "classifier", labels=3)
    assert detect_mode(classifier, "safetensors") == "embedding"
    with pytest.raises(ServiceError, match="3 labels"):
        load_cross_encoder(classifier, "cpu")
    (tiny_reranker / "modules.json").write_text("[]")
    try:
        assert detect_mode(tiny_reranker, "safetensors") == "rerank"
    finally:
        (tiny_reranker / "modules.json").unlink()
