"""Scores out of rerank calls."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sage_gateway.dialects.base import MalformedAnswer, NotTranslatable
from sage_gateway.dialects.relevance import RerankDialect, ScoreDialect
from sage_gateway.errors import HttpError

SCORE = ScoreDialect()


def translated(talk: Any, **sides: Any) -> Any:
    call = SCORE.translate({"model": "m", "user": "u", **sides}, "llamacpp", talk.stamp)
    assert call is not None
    return call


@pytest.mark.parametrize(("first", "second"), [("text_1", "text_2"), ("queries", "documents")])
def test_one_query_and_its_documents(talk: Any, first: str, second: str) -> None:
    call = translated(talk, **{first: "q", second: ["a", "b"]})
    assert call.path == "/rerank"
    assert call.body == {"model": "m", "user": "u", "query": "q", "documents": ["a", "b"]}
    answer = {
        "results": [
            {"index": 1, "relevance_score": 0.9},
            {"index": 0, "relevance_score": -2},
        ],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert orjson.loads(call.whole(orjson.dumps(answer))) == {
        "id": "score-t1",
        "object": "list",
        "created": 1_700_000_000,
        "model": "m",
        "data": [
            {"index": 0, "object": "score", "score": -2.0},
            {"index": 1, "object": "score", "score": 0.9},
        ],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }


def test_a_pair(talk: Any) -> None:
    call = translated(talk, text_1=["q"], text_2="a")
    assert (call.body["query"], call.body["documents"]) == ("q", ["a"])


@pytest.mark.parametrize(
    "answer",
    [
        b"nope",
        b"{}",
        b'{"results":[]}',
        b'{"results":[{"index":1,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":"x"}]}',
    ],
)
def test_an_answer_without_a_score_per_text(talk: Any, answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        translated(talk, text_1="q", text_2="a").whole(answer)


def test_refusals(talk: Any) -> None:
    with pytest.raises(NotTranslatable, match="text_1"):
        translated(talk, text_1=["a", "b"], text_2=["c", "d"])
    with pytest.raises(HttpError, match=r"text_2\[0\]"):
        translated(talk, text_1="q", text_2=[3])
    with pytest.raises(HttpError, match="text_2"):
        SCORE.check({"model": "m", "text_1": "q"})
    with pytest.raises(HttpError, match="documents"):
        RerankDialect().check({"model": "m", "query": "q", "documents": []})
    with pytest.raises(NotTranslatable, match="text_2"):
        translated(talk, text_1="q", text_2={"content": []})


def test_the_scheduler_sees_a_rerank_call() -> None:
    read = SCORE.scheduled({"model": "m", "text_1": "q", "text_2": "a", "service_tier": "flex"})
    assert read == {"model": "m", "service_tier": "flex", "query": "q", "documents": ["a"]}
