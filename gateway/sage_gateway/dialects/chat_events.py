"""Server-sent events of a chat stream, parsed: what the translations of streams read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import MalformedAnswer

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_MOST_HELD = 8 * 1024 * 1024
_SHOWN = 500

DONE: Mapping[str, Any] = {}
"""Stands for ``[DONE]``."""


class ChatEvents:
    """Cuts the bytes of a stream into chunks of ``chat.completion.chunk``."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Mapping[str, Any]]:
        """The chunks that these bytes complete.

        Raises:
            MalformedAnswer: an event is no chunk, is endless, or is an error.
        """
        data = self._held + data
        position = 0
        for match in _EVENT_END.finditer(data):
            chunk = _unbroken(parsed(data[position : match.start()]))
            position = match.end()
            if chunk is not None:
                self._held = data[position:]
                yield chunk
        self._held = data[position:]
        if len(self._held) > _MOST_HELD:
            raise MalformedAnswer(f"sent an event of more than {_MOST_HELD} bytes")

    def rest(self) -> Iterator[Mapping[str, Any]]:
        """At the end of the stream: a last event without a blank line after it."""
        held, self._held = self._held, b""
        if held.strip() and (chunk := _unbroken(parsed(held))) is not None:
            yield chunk


def parsed(event: bytes) -> Mapping[str, Any] | None:
    """What an event holds; None: it is a comment.

    Raises:
        MalformedAnswer: it holds no JSON object.
    """
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    payload = b"\n".join(lines)
    if not payload:
        return None
    if payload == b"[DONE]":
        return DONE
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise MalformedAnswer("sent an event that is not JSON") from None
    if not isinstance(chunk, dict):
        raise MalformedAnswer("sent an event that is not an object")
    return chunk


def _unbroken(chunk: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if chunk and chunk.get("error"):
        raise MalformedAnswer(f"broke its answer off: {_message(chunk['error'])}")
    return chunk


def choice_of(chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first answer's part of a chunk or of a whole chat answer; None: it has none.

    Raises:
        MalformedAnswer: ``choices`` holds something else.
    """
    choices = chunk.get("choices")
    if not choices:
        return None
    if not isinstance(choices, list) or not isinstance(choices[0], Mapping):
        raise MalformedAnswer("sent choices that are not objects")
    return choices[0]


def texts_of(delta: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a message or its piece says: reasoning, text, refusal."""
    return (
        _text(delta.get("reasoning_content") or delta.get("reasoning")),
        _text(delta.get("content")),
        _text(delta.get("refusal")),
    )


def tool_calls_of(delta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tool calls of a message or its piece.

    Raises:
        MalformedAnswer: they are not objects with a ``function``.
    """
    calls = delta.get("tool_calls") or []
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in calls
    ):
        raise MalformedAnswer("sent tool calls that are not objects with a function")
    return calls


def _message(error: Any) -> str:
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        error = error["message"]
    return (error if isinstance(error, str) else orjson.dumps(error).decode())[:_SHOWN]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
