"""Embedding calls: many texts as several requests, and their vectors put together. Pure."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_prefect.inference.protocol import json_body, malformed, parse_json


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises:
        TypeError: a lone string, or something that is no string among them.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError("embed() takes a sequence of strings, got one string: write [text].")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"embed() takes strings, got {type(text).__name__} at index {index}.")
    return checked


def split(texts: Sequence[str], max_texts: int, max_characters: int) -> Iterator[slice]:
    """Slices of ``texts`` in order, each within both bounds; a longer text goes alone."""
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and (index - start >= max_texts or size + len(text) > max_characters):
            yield slice(start, index)
            start, size = index, 0
        size += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def embedding_body(texts: Sequence[str], model: str, **parameters: Any) -> bytes:
    """Body of ``/v1/embeddings``; asks for base64, half the bytes of decimal numbers."""
    fixed = {"model": model, "input": list(texts), "encoding_format": "base64"}
    return json_body(fixed, parameters)


def parse_embeddings(content: bytes, count: int) -> NDArray[np.float32]:
    """Embeddings float32 [count, dimension] from an answer, base64 or numbers, in input order.

    Raises:
        EngineUnavailable: the body does not follow the protocol, or has other than ``count`` rows.
    """
    what = f"list of {count} embeddings"
    data = parse_json(content, what).get("data")
    if not isinstance(data, list) or len(data) != count:
        raise malformed(what, content)
    rows: dict[int, NDArray[np.float32]] = {}
    try:
        for position, item in enumerate(data):
            rows[item.get("index", position)] = _vector(item["embedding"])
        return np.stack([rows[index] for index in range(count)])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise malformed(what, content) from error


def join(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The parts under each other, float32 [n, dimension]; shape (0, 0) when there are none.

    Raises:
        EngineUnavailable: parts of different dimension: two models answer to one name.
    """
    if not parts:
        return np.empty((0, 0), dtype=np.float32)
    dimensions = sorted({part.shape[1] for part in parts})
    if len(dimensions) > 1:
        raise malformed("embedding of one dimension", f"dimensions {dimensions}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _vector(value: object) -> NDArray[np.float32]:
    if isinstance(value, str):
        # Little-endian float32, as OpenAI and vLLM send it.
        return np.frombuffer(a2b_base64(value), dtype="<f4")
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"an embedding of shape {vector.shape}")
    return vector
