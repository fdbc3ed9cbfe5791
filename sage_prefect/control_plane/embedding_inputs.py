"""The inputs of an embedding or rerank call: how long each is, and which are equal.

Lengths are shares of the body's estimated tokens, so that what is learned of bytes per token holds
for them; inputs given as token ids are counted. Keys serve de-duplication: two inputs get one
result only if model, every option of the call and the input itself are equal. They are BLAKE2b cut
to 64 bits: among 100,000 inputs that wait, two different ones meet with a probability of 3e-10.

Calls may be merged only if their bodies are equal in everything but the inputs, and the inputs are
of one form (texts or token ids): what a field means to an engine need not be known then.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from sage_prefect.control_plane.events import Kind

MAX_KEYED_INPUTS = 2048
"""OpenAI's limit for one call. A longer one gets no keys: hashing would hold up other requests."""

# Fields that hold inputs, or that say who asks and how urgently: no result depends on them.
_NOT_OPTIONS = frozenset(
    {"model", "input", "documents", "texts", "user", "priority", "service_tier"}
)


def measure_inputs(
    kind: Kind, body: Mapping[str, Any], body_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Estimated tokens and de-duplication key of each input.

    Args:
        kind: ``embedding`` (reads ``input``) or ``rerank`` (``documents`` or ``texts``, each of
            which is read together with ``query``).
        body_tokens: estimated tokens of the whole call.

    Returns:
        Two tuples, each empty if the inputs are of a shape that is not known; the second also
        above ``MAX_KEYED_INPUTS``.
    """
    inputs = _documents(body) if kind == "rerank" else _embedded(body.get("input"))
    if not inputs:
        return (), ()
    if isinstance(inputs[0], str):
        read = _texts(inputs)
        if read is None:
            return (), ()
        # A reranker reads the query anew with every document.
        query = body.get("query") if kind == "rerank" else None
        again = len(query.encode("utf-8", "surrogatepass")) if isinstance(query, str) else 0
        total = again + sum(map(len, read)) or 1
        share = body_tokens / total
        tokens = tuple([int((again + len(text)) * share) or 1 for text in read])
        form = b"\0"
    else:
        ids = _token_ids(inputs)
        if ids is None:
            return (), ()
        read = ids
        tokens = tuple([len(one) >> 2 or 1 for one in ids])
        form = b"\1"  # the ids' bytes may be those of a text
    return tokens, (_keys(body, form, read) if len(read) <= MAX_KEYED_INPUTS else ())


def merge_key(kind: Kind, body: Mapping[str, Any], tokens: tuple[int, ...]) -> int | None:
    """Calls of one model with equal keys may share a call of an engine.

    Args:
        tokens: of each input, as measured.

    Returns:
        None for what goes to its engine as it came: rerank calls, inputs of a shape that is not
        known, and more than ``MAX_KEYED_INPUTS``, whose answer would be too big to be held.
    """
    if kind != "embedding" or not tokens or len(tokens) > MAX_KEYED_INPUTS:
        return None
    value = body.get("input")
    first = value[0] if isinstance(value, list) and value else value
    form = "text" if isinstance(first, str) else "ids"
    rest = {name: field for name, field in body.items() if name not in ("input", "model")}
    try:
        seed = f"{form}\0{json.dumps(rest, sort_keys=True) if rest else ''}"
    except (TypeError, ValueError, RecursionError):
        return None  # nested too deeply to be written
    digest = blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _embedded(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        return []
    # Bare token ids are one input.
    return [value] if isinstance(value[0], int) else value


def _documents(body: Mapping[str, Any]) -> list[Any]:
    value = body.get("documents", body.get("texts"))
    if not isinstance(value, list):
        return []
    return [item.get("text") if isinstance(item, Mapping) else item for item in value]


def _texts(inputs: list[Any]) -> list[bytes] | None:
    try:
        return [text.encode("utf-8", "surrogatepass") for text in inputs]
    except AttributeError:
        return None


def _token_ids(inputs: list[Any]) -> list[bytes] | None:
    try:
        return [array("I", ids).tobytes() for ids in inputs]
    except (TypeError, OverflowError):
        return None


def _keys(body: Mapping[str, Any], form: bytes, read: list[bytes]) -> tuple[int, ...]:
    options = {name: value for name, value in body.items() if name not in _NOT_OPTIONS}
    seed = body["model"]
    if options:
        try:
            seed = f"{seed}\0{json.dumps(options, sort_keys=True)}"
        except (TypeError, ValueError, RecursionError):
            return ()  # nested too deeply to be written
    call = blake2b(seed.encode("utf-8", "surrogatepass") + form, digest_size=8)
    keys = []
    for content in read:
        one = call.copy()
        one.update(content)
        keys.append(int.from_bytes(one.digest(), "little"))
    return tuple(keys)
