"""Change top-level fields of a JSON object in its bytes, leaving all other bytes as they were.

The client's numbers, escapes, key order and unknown fields reach the engine untouched, and a big
prompt is never encoded again.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

# Strings (unrolled, so that long ones match at memory speed) and brackets; nothing else matters.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_SCALAR = re.compile(rb"[^\s,}]+")
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")


def splice(body: bytes, parsed: dict[str, Any], changes: dict[str, Any]) -> bytes:
    """``body`` with the top-level fields in ``changes`` set to new values.

    Args:
        body: a JSON object, already checked by parsing.
        parsed: what it parsed to.
        changes: field name -> new value (anything that orjson encodes).
    """
    present = {key for key in changes if key in parsed}
    spans = value_spans(body, present) if present else {}
    if len(spans) != len(present):
        # A key spelled with escapes that the scanner did not take for ours: encode it all anew.
        return orjson.dumps({**parsed, **changes})
    added = {key: value for key, value in changes.items() if key not in parsed}
    edits = [
        (start, end, orjson.dumps(changes[key]))
        for key, places in spans.items()
        for start, end in places
    ]
    if added:
        opening = body.index(b"{") + 1
        text = orjson.dumps(added)[1:-1] + (b"," if parsed else b"")
        edits.append((opening, opening, text))
    parts: list[bytes] = []
    position = 0
    for start, end, text in sorted(edits):
        parts += (body[position:start], text)
        position = end
    parts.append(body[position:])
    return b"".join(parts)


def value_spans(body: bytes, keys: set[str]) -> dict[str, list[tuple[int, int]]]:
    """Where the values of top-level ``keys`` lie in ``body``: all places of a repeated key."""
    found: dict[str, list[tuple[int, int]]] = {}
    depth = 0
    open_key: str | None = None  # its value is an object or array that has not ended yet
    start = 0
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
                found.setdefault(open_key, []).append((start, match.end()))
                open_key = None
        elif depth == 1 and (colon := _COLON.match(body, match.end())) is not None:
            # At depth 1 of an object, a string before a colon is a key.
            key = orjson.loads(token)
            if key not in keys:
                continue
            start = colon.end()
            first = body[start : start + 1]
            if first in _OPENING:
                open_key = key
                continue
            value = (_TOKEN if first == b'"' else _SCALAR).match(body, start)
            if value is not None:
                found.setdefault(key, []).append(value.span())
                skip_to = value.end()
    return found
