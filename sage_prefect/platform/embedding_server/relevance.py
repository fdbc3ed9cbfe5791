"""``/v1/rerank`` and ``/v1/score``: bodies checked, answers written. Pure.

Rerank has the shape of Jina's, Cohere's and vLLM's, score that of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sage_prefect.platform.embedding_server.request import (
    Limits,
    invalid,
    kind_of,
    load_body,
    served_model,
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class RerankRequest:
    """A checked rerank request.

    Attributes:
        top_n: how many of the best documents are wished; None: all.
        return_documents: whether the answer repeats them.
    """

    model: str
    pairs: list[Pair]
    top_n: int | None
    return_documents: bool

    def answer(self, scores: NDArray[np.float32], tokens: int, tag: str, created: int) -> bytes:
        """The body of a 200 answer: best first, equal ones in the order of the request.

        Args:
            scores: float32 [pairs].
            tokens: that went through the model.
            tag: makes the answer's id unique.
            created: seconds since 1970; rerank answers have no time.
        """
        best = np.argsort(-scores, kind="stable")[: self.top_n]
        results = []
        for index in best.tolist():
            result: dict[str, Any] = {"index": index, "relevance_score": float(scores[index])}
            if self.return_documents:
                result["document"] = {"text": self.pairs[index][1]}
            results.append(result)
        return orjson.dumps(
            {
                "id": f"rerank-{tag}",
                "model": self.model,
                "results": results,
                "usage": _usage(tokens),
            }
        )


@dataclass(frozen=True)
class ScoreRequest:
    """A checked score request."""

    model: str
    pairs: list[Pair]

    def answer(self, scores: NDArray[np.float32], tokens: int, tag: str, created: int) -> bytes:
        """The body of a 200 answer, in the order of the request; see :class:`RerankRequest`."""
        return orjson.dumps(
            {
                "id": f"score-{tag}",
                "object": "list",
                "created": created,
                "model": self.model,
                "data": [
                    {"index": index, "object": "score", "score": score}
                    for index, score in enumerate(scores.tolist())
                ],
                "usage": _usage(tokens),
            }
        )


def parse_rerank(body: bytes, *, models: tuple[str, ...], limits: Limits) -> RerankRequest:
    """Check a rerank body.

    Raises:
        HttpError: 400 or 404; ``param`` names the field.
    """
    content = load_body(body)
    model = served_model(content, models)
    query = _text(content.get("query"), "query", limits)
    given = content.get("documents")
    if not isinstance(given, list) or not given:
        raise invalid("'documents' must be a list of at least one text.", "documents")
    _check_count(len(given), "documents", limits)
    documents = [
        _text(one.get("text") if isinstance(one, dict) else one, f"documents[{i}]", limits)
        for i, one in enumerate(given)
    ]
    top_n = content.get("top_n")
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise invalid("'top_n' must be a whole number above 0.", "top_n")
    told = content.get("return_documents")
    if told not in (None, True, False):
        raise invalid("'return_documents' must be true or false.", "return_documents")
    pairs = [(query, document) for document in documents]
    return RerankRequest(model, pairs, top_n, told is not False)


def parse_score(body: bytes, *, models: tuple[str, ...], limits: Limits) -> ScoreRequest:
    """Check a score body: one text against many, or as many against as many.

    Raises:
        HttpError: 400 or 404; ``param`` names the field.
    """
    content = load_body(body)
    model = served_model(content, models)
    first = _texts(content.get("text_1"), "text_1", limits)
    second = _texts(content.get("text_2"), "text_2", limits)
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise invalid(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}: give one text_1, or as "
            "many of both.",
            "text_1",
        )
    return ScoreRequest(model, list(zip(first, second, strict=True)))


def _texts(value: Any, param: str, limits: Limits) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given:
        raise invalid(f"'{param}' must be a text or a list of at least one text.", param)
    _check_count(len(given), param, limits)
    return [_text(one, f"{param}[{i}]", limits) for i, one in enumerate(given)]


def _check_count(count: int, param: str, limits: Limits) -> None:
    if count > limits.max_inputs:
        raise invalid(
            f"'{param}' has {count} texts, more than {limits.max_inputs}: split the request.", param
        )


def _text(value: Any, place: str, limits: Limits) -> str:
    param = place.partition("[")[0]
    if not isinstance(value, str):
        raise invalid(f"'{place}' must be a text, got {kind_of(value)}.", param)
    if len(value) > limits.max_input_characters:
        raise invalid(
            f"'{place}' has {len(value)} characters, more than {limits.max_input_characters}.",
            param,
        )
    return value


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def lengths(pairs: Sequence[Pair]) -> list[int]:
    """Characters of each pair."""
    return [len(first) + len(second) for first, second in pairs]
