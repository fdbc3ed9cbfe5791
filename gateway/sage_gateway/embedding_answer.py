"""An engine's answer to an embedding call, cut into vectors without touching their bytes.

The answer is read twice by the JSON parser, once as it is and once with a mark in place of each
vector: the first says that it is JSON and how long each vector is, the second which bytes belong to
which input. Whatever is not exactly as asked is refused: a client must never get another's vector.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

# A raw "embedding" before a colon can only be a key: inside a string its quotes are escaped.
_VECTOR = re.compile(rb'"embedding"\s*:\s*(\[[^\[\]"{}]*\]|"[A-Za-z0-9+/=_-]*")')
_NUMBERS = b"0123456789+-.eE, \t\r\n[]"
_MARK = secrets.token_hex(8)  # no engine can know it


class BadAnswer(Exception):  # noqa: N818 - the engine's error, not ours
    """The answer is not what was asked for; the message says how."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """What an engine answered.

    Attributes:
        vectors: JSON of each input's ``embedding`` (an array, or base64 in quotes), in the order
            of the inputs.
        prompt_tokens, total_tokens: of the whole call; None where the engine did not say.
    """

    vectors: list[bytes]
    prompt_tokens: int | None
    total_tokens: int | None


def read_vectors(answer: bytes, count: int) -> Vectors:
    """Cut an answer to a call of ``count`` inputs.

    Raises:
        BadAnswer: it is not JSON, holds another number of vectors, or not in the order of the
            inputs, or vectors of several lengths or kinds, or something else in their place.
    """
    whole = _parsed(answer)
    data = whole.get("data")
    if not isinstance(data, list):
        raise BadAnswer("answered without a list 'data'")
    if len(data) != count:
        raise BadAnswer(f"answered {len(data)} vectors to {count} inputs")
    found, marked_bytes = _cut(answer)
    marked = _parsed(marked_bytes)
    shape: tuple[type, int] | None = None
    for index, (item, seen) in enumerate(zip(data, marked["data"], strict=True)):
        if not isinstance(item, dict):
            raise BadAnswer(f"answered with something that is no object as vector {index}")
        if item.get("index", index) != index or isinstance(item.get("index"), bool):
            raise BadAnswer(f"answered vector {index} under the index {item['index']!r:.40}")
        if f'"{seen.get("embedding")}"'.encode() != _mark(index):
            raise BadAnswer(f"answered without a vector {index}")
        vector = item["embedding"]
        own = (type(vector), len(vector))
        if not vector or (isinstance(vector, list) and found[index].translate(None, _NUMBERS)):
            raise BadAnswer(f"answered with something that is no vector as vector {index}")
        if shape is None:
            shape = own
        elif own != shape:
            raise BadAnswer(f"answered vectors of unlike lengths or kinds (vector {index})")
    if len(found) != count:
        raise BadAnswer("answered with vectors in unexpected places")
    usage = whole.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Vectors(found, _count(usage.get("prompt_tokens")), _count(usage.get("total_tokens")))


def _cut(answer: bytes) -> tuple[list[bytes], bytes]:
    """The vectors, and the answer with a mark in place of each."""
    found: list[bytes] = []
    rest: list[bytes] = []
    position = 0
    for match in _VECTOR.finditer(answer):
        start, end = match.span(1)
        rest += (answer[position:start], _mark(len(found)))
        found.append(answer[start:end])
        position = end
    rest.append(answer[position:])
    return found, b"".join(rest)


def _parsed(answer: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise BadAnswer("answered with something that is not JSON") from None
    if not isinstance(content, dict):
        raise BadAnswer("answered with something that is no JSON object")
    return content


def _mark(number: int) -> bytes:
    return b'"%b:%d"' % (_MARK.encode(), number)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
