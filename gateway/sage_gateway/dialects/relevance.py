"""``/v1/rerank`` and ``/v1/score``: how well documents answer a query.

Rerank has the shape of Jina's and Cohere's, score that of vLLM. An engine that reranks can score
pairs that share their first text: a score is a document's relevance to the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import (
    Dialect,
    MalformedAnswer,
    NotTranslatable,
    Stamp,
    StreamRelay,
)
from sage_gateway.dialects.fields import invalid, items, text
from sage_gateway.dialects.scheduled import urgency

# Names that versions of vLLM gave to the two sides.
FIRST = ("text_1", "queries", "data_1")
SECOND = ("text_2", "documents", "items", "data_2")


class ScoreOverRerank:
    """A score request that goes to ``/rerank``."""

    path = "/rerank"
    is_chat = False

    def __init__(self, body: Mapping[str, Any], stamp: Stamp) -> None:
        name, first = _side(body, FIRST)
        if isinstance(first, list) and len(first) == 1:
            first = first[0]
        if isinstance(first, list):
            raise NotTranslatable(
                name, "a rerank call has one query; score each pair in a call of its own."
            )
        other, second = _side(body, SECOND)
        for side, value in ((name, first), (other, second)):
            if isinstance(value, dict):
                raise NotTranslatable(side, "only texts can be scored.")
        texts = [second] if isinstance(second, str) else items(second, other)
        self._model: str = body["model"]
        self._stamp = stamp
        self._count = len(texts)
        known = {"model", *FIRST, *SECOND}
        self.body = {
            **{key: value for key, value in body.items() if key not in known},
            "model": self._model,
            "query": text(first, name),
            "documents": [text(one, f"{other}[{i}]") for i, one in enumerate(texts)],
        }

    def whole(self, answer: bytes) -> bytes:
        """vLLM's answer to a score request."""
        try:
            content = orjson.loads(answer)
            scores = {
                result["index"]: float(result["relevance_score"]) for result in content["results"]
            }
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise MalformedAnswer("sent an answer without results") from None
        if sorted(scores) != list(range(self._count)):
            raise MalformedAnswer(f"sent {len(scores)} scores for {self._count} texts")
        data = [{"index": i, "object": "score", "score": scores[i]} for i in range(self._count)]
        return orjson.dumps(
            {
                "id": f"score-{self._stamp.tag}",
                "object": "list",
                "created": self._stamp.created,
                "model": self._model,
                "data": data,
                "usage": content.get("usage") or {},
            }
        )

    def stream(self) -> StreamRelay:
        """There are no streams of scores."""
        raise NotImplementedError


class RerankDialect(Dialect):
    """``/v1/rerank``."""

    counts_in_stream = False

    def check(self, body: Mapping[str, Any]) -> None:
        """A query alone says nothing."""
        if not body.get("documents") and not body.get("texts"):
            raise invalid("documents", "a list of at least one text")


class ScoreDialect(Dialect):
    """``/v1/score``."""

    counts_in_stream = False

    def check(self, body: Mapping[str, Any]) -> None:
        """Both sides are there."""
        _side(body, SECOND)

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """As a rerank request."""
        first, second = _side(body, FIRST)[1], _side(body, SECOND)[1]
        query = first if isinstance(first, str) else ""
        return {
            **urgency(body),
            "query": query,
            "documents": second if isinstance(second, list) else [second],
        }

    def translate(
        self, body: Mapping[str, Any], driver: str, stamp: Stamp
    ) -> ScoreOverRerank | None:
        """As a rerank request."""
        return ScoreOverRerank(body, stamp)


def _side(body: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if isinstance(body.get(name), (str, list, dict)):
            return name, body[name]
    raise invalid(names[0], "a text or a list of texts")
