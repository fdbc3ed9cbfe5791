"""An engine's answer to an embedding call, cut into vectors without touching their bytes.

The JSON parser reads the answer with a mark in place of each vector, which says which bytes belong
to which input, and each vector by itself, which says that it is JSON and how long it is. Whatever
is not exactly as asked is refused: a client must never get another's vector.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

# Raw, in quotes and before a colon, it can only be a key: inside a string its quotes are escaped.
_KEY = b'"embedding"'
_COLON = re.compile(rb"\s*:\s*")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"
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
    found, rest = _cut(answer)
    whole = _parsed(rest)
    data = whole.get("data")
    if not isinstance(data, list):
        raise BadAnswer("answered without a list 'data'")
    if len(data) != count:
        raise BadAnswer(f"answered {len(data)} vectors to {count} inputs")
    shape: tuple[bool, int] | None = None
    for index, item in enumerate(data):
        if not isinstance(item, dict):
            raise BadAnswer(f"answered with something that is no object as vector {index}")
        if item.get("index", index) != index or isinstance(item.get("index"), bool):
            raise BadAnswer(f"answered vector {index} under the index {item['index']!r:.40}")
        if item.get("embedding") != _mark(index):
            raise BadAnswer(f"answered without a vector {index}")
        own = _shape(found[index], index)
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
    at = answer.find(_KEY)
    while at >= 0:
        at += len(_KEY)
        colon = _COLON.match(answer, at)
        if colon is not None and (vector := _vector_at(answer, colon.end())):
            start = colon.end()
            rest += (answer[position:start], b'"%b"' % _mark(len(found)).encode())
            found.append(vector)
            position = at = start + len(vector)
        at = answer.find(_KEY, at)
    rest.append(answer[position:])
    return found, b"".join(rest)


def _vector_at(answer: bytes, start: int) -> bytes:
    """What may be a vector there: an array without arrays, objects and texts in it, or a text.
    Empty if it is neither."""
    opening = answer[start : start + 1]
    if opening == b"[":
        end = answer.find(b"]", start)
        if end < 0:
            return b""
        vector = answer[start : end + 1]
        simple = b'"' not in vector and b"{" not in vector and b"}" not in vector
        return vector if simple and vector.find(b"[", 1) < 0 else b""
    if opening == b'"':
        end = answer.find(b'"', start + 1)
        if end < 0:
            return b""
        vector = answer[start : end + 1]
        return vector if not vector[1:-1].translate(None, _BASE64) else b""
    return b""


def _shape(vector: bytes, index: int) -> tuple[bool, int]:
    """Whether it is an array, and how long it is.

    Raises:
        BadAnswer: it is not JSON, or empty, or holds something else than numbers.
    """
    if vector.startswith(b'"'):
        if len(vector) > 2:
            return False, len(vector)
    else:
        try:
            numbers = orjson.loads(vector)
        except orjson.JSONDecodeError:
            raise BadAnswer("answered with something that is not JSON") from None
        # Of what an array without texts may hold, only true, false and null have these letters.
        if numbers and b"u" not in vector and b"f" not in vector:
            return True, len(numbers)
    raise BadAnswer(f"answered with something that is no vector as vector {index}")


def _parsed(answer: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise BadAnswer("answered with something that is not JSON") from None
    if not isinstance(content, dict):
        raise BadAnswer("answered with something that is no JSON object")
    return content


def _mark(number: int) -> str:
    return f"{_MARK}:{number}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
