"""Change top-level fields of a JSON object in its bytes, leaving all other bytes as they were.

The client's numbers, escapes, key order and unknown fields reach the engine untouched, and a big
prompt is never encoded again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

# Strings (unrolled, so that long ones match at memory speed) and brackets; nothing else matters.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_SPACE = re.compile(rb"\s*")
_ELEMENT = re.compile(rb"[^\s,\]]+")
_SCALAR = re.compile(rb"[^\s,}]+")
_COMMA_AFTER = re.compile(rb"\s*,\s*")
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")


def splice(
    body: bytes, parsed: dict[str, Any], changes: dict[str, Any], drop: str | None = None
) -> bytes:
    """``body`` with the top-level fields in ``changes`` set to new values.

    Args:
        body: a JSON object, already checked by parsing.
        parsed: what it parsed to.
        changes: field name -> new value (anything that orjson encodes).
        drop: a field to take out, if it is there; not one of ``changes``.
    """
    dropped = {drop} if drop is not None and drop in parsed else set()
    present = {key for key in changes if key in parsed}
    sought = present | dropped
    spans = value_spans(body, sought) if sought else {}
    if len(spans) != len(sought) or any(len(spans[key]) > 1 for key in dropped):
        # A key spelled with escapes that the scanner did not take for ours, or one to be taken out
        # that is there twice: encode it all anew.
        return orjson.dumps({**{k: v for k, v in parsed.items() if k not in dropped}, **changes})
    added = {key: value for key, value in changes.items() if key not in parsed}
    edits = [
        (start, end, orjson.dumps(changes[key]))
        for key, places in spans.items()
        if key in changes
        for start, end in places
    ]
    for key in dropped:
        edits.append((*_member(body, key), b""))
    if added:
        opening = body.index(b"{") + 1
        text = orjson.dumps(added)[1:-1] + (b"," if len(parsed) > len(dropped) else b"")
        edits.append((opening, opening, text))
    parts: list[bytes] = []
    position = 0
    for start, end, text in sorted(edits):
        parts += (body[position:start], text)
        position = end
    parts.append(body[position:])
    return b"".join(parts)


def replaced(body: bytes, key: str, value: bytes) -> bytes:
    """``body``, a JSON object, with other JSON as the value of a top-level field; unchanged if it
    has no such field, or is not JSON."""
    try:
        places = value_spans(body, {key}).get(key, [])
    except orjson.JSONDecodeError:
        return body
    for start, end in reversed(places):
        body = body[:start] + value + body[end:]
    return body


def element_spans(body: bytes, start: int) -> list[tuple[int, int]]:
    """Where the elements of the array that begins at ``start`` lie in ``body``, which is JSON."""
    spans: list[tuple[int, int]] = []
    position = _SPACE.match(body, start + 1).end()  # type: ignore[union-attr]  # matches always
    if body[position : position + 1] == b"]":
        return spans
    while True:
        first = body[position : position + 1]
        if first in _OPENING:
            end = _end_of(body, position)
        else:
            value = (_TOKEN if first == b'"' else _ELEMENT).match(body, position)
            if value is None:
                raise ValueError(f"no JSON at byte {position}")
            end = value.end()
        spans.append((position, end))
        after = _SPACE.match(body, end).end()  # type: ignore[union-attr]
        if body[after : after + 1] != b",":
            return spans
        position = _SPACE.match(body, after + 1).end()  # type: ignore[union-attr]


def _end_of(body: bytes, start: int) -> int:
    """Where the object or array that begins at ``start`` ends."""
    depth = 0
    for match in _TOKEN.finditer(body, start):
        token = match.group()
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
            if not depth:
                return match.end()
    raise ValueError(f"the value at byte {start} has no end")


def value_spans(body: bytes, keys: set[str]) -> dict[str, list[tuple[int, int]]]:
    """Where the values of top-level ``keys`` lie in ``body``: all places of a repeated key."""
    found: dict[str, list[tuple[int, int]]] = {}
    for key, _, start, end in _members(body, keys):
        found.setdefault(key, []).append((start, end))
    return found


def _member(body: bytes, key: str) -> tuple[int, int]:
    """Where a field lies with its comma."""
    _, start, _, end = next(_members(body, {key}))
    after = _COMMA_AFTER.match(body, end)
    if after is not None:
        return start, after.end()
    before = body.rfind(b",", 0, start)
    return (start if before < 0 else before), end


def _members(body: bytes, keys: set[str]) -> Iterator[tuple[str, int, int, int]]:
    """Top-level fields named ``keys``: (key, its start, start and end of its value)."""
    depth = 0
    open_key: str | None = None  # its value is an object or array that has not ended yet
    key_start = start = 0
    skip_to = 0
    for match in _TOKEN.finditer(body):
        if match.start() < skip_to:
            continue
        token = match.group()
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
            if depth == 1 and open_key is not None:
                yield open_key, key_start, start, match.end()
                open_key = None
        elif depth == 1 and (colon := _COLON.match(body, match.end())) is not None:
            # At depth 1 of an object, a string before a colon is a key.
            key = orjson.loads(token)
            if key not in keys:
                continue
            key_start, start = match.start(), colon.end()
            first = body[start : start + 1]
            if first in _OPENING:
                open_key = key
                continue
            value = (_TOKEN if first == b'"' else _SCALAR).match(body, start)
            if value is not None:
                yield key, key_start, *value.span()
                skip_to = value.end()
