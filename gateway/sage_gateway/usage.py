"""Token counts out of an engine's answer, without parsing the answer."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

_TAIL: Final = 8192
_KEY: Final = b'"usage"'


class Usage(NamedTuple):
    """Tokens as the engine counted them; None where it did not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def total(self) -> int | None:
        """Prompt and answer; None: neither was said."""
        if self.prompt_tokens is None and self.output_tokens is None:
            return None
        return (self.prompt_tokens or 0) + (self.output_tokens or 0)


NO_USAGE = Usage()


def usage_of(value: Any) -> Usage:
    """Read a parsed ``usage`` object; anything unexpected counts as not said."""
    if not isinstance(value, dict):
        return NO_USAGE
    if "input_tokens" in value:
        return _later_usage(value)
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        _count(value.get("prompt_tokens")), _count(value.get("completion_tokens")), _count(cached)
    )


def _later_usage(value: dict[str, Any]) -> Usage:
    """In the words of the Responses API, or of Anthropic's, which counts cached tokens apart."""
    given, made = _count(value["input_tokens"]), _count(value.get("output_tokens"))
    if "input_tokens_details" in value:
        details = value["input_tokens_details"]
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        return Usage(given, made, cached)
    read = _count(value.get("cache_read_input_tokens"))
    written = _count(value.get("cache_creation_input_tokens"))
    return Usage(None if given is None else given + (read or 0) + (written or 0), made, read)


def usage_in_tail(body: bytes) -> Usage:
    """The last ``usage`` object in the last few KB of a JSON answer."""
    first = max(0, len(body) - _TAIL)
    at = body.rfind(_KEY, first)
    while at >= 0:
        found = _object_after(body, at + len(_KEY))
        if found:
            try:
                return usage_of(orjson.loads(found))
            except orjson.JSONDecodeError:
                return NO_USAGE
        at = body.rfind(_KEY, first, at)
    return NO_USAGE


def _object_after(body: bytes, position: int) -> bytes:
    """The object that follows a colon at ``position``; empty if none does.

    A raw ``"usage"`` before a colon can only be a key: inside a string its quotes are escaped.
    Token counts have no braces in their strings, so braces are simply counted.
    """
    start = body.find(b"{", position)
    if start < 0 or body[position:start].strip() != b":":
        return b""
    end = start
    while True:
        end = body.find(b"}", end) + 1
        if not end:
            return b""
        if body.count(b"{", start, end) == body.count(b"}", start, end):
            return body[start:end]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
