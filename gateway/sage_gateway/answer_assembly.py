"""A whole answer out of a stream, for engines that notice a lost client only while they stream.

llama.cpp's server finishes a non-streaming answer even when nobody waits for it any more
(its issues 9273, 24496); a slot then works for minutes on nothing. Such an engine is asked to
stream, and the client gets the one JSON object that it asked for.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from sage_gateway.dialects.base import MalformedAnswer
from sage_gateway.dialects.chat_events import DONE, parsed
from sage_gateway.usage import NO_USAGE, Usage, usage_of

_EVENT_END = re.compile(rb"\r?\n\r?\n")
# Choices, or tool calls of one, that an answer may have.
_MOST = 1023
# Texts that arrive in pieces; any other field is replaced by its latest value.
_GROWING = frozenset({"content", "reasoning_content", "reasoning", "refusal", "arguments", "text"})
_OBJECTS = {"chat.completion.chunk": "chat.completion"}


class AnswerAssembly:
    """Collects the events of a chat or completion stream.

    Attributes:
        usage: token counts, once they came.
        error: the ``error`` object of an event, if the engine sent one.
        done: ``[DONE]`` has come.
    """

    def __init__(self) -> None:
        self.usage: Usage = NO_USAGE
        self.error: dict[str, Any] | None = None
        self.done = False
        self._held = b""
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            MalformedAnswer: an event is not what such a stream holds.
        """
        data = self._held + data
        position = 0
        for match in _EVENT_END.finditer(data):
            self._take(data[position : match.start()])
            position = match.end()
        self._held = data[position:]

    @property
    def complete(self) -> bool:
        """Whether the answer is whole: ``[DONE]`` has come, or a reason to end for each choice."""
        return self.done or (
            bool(self._choices)
            and all(choice.get("finish_reason") for choice in self._choices.values())
        )

    def answer(self) -> bytes:
        """The JSON object of the whole answer."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        kind = self._answer.get("object")
        whole = {"choices": choices, **self._answer}
        if isinstance(kind, str):
            whole["object"] = _OBJECTS.get(kind, kind)
        return orjson.dumps(whole)

    def _take(self, event: bytes) -> None:
        content = parsed(event)
        if content is None:
            return  # a comment or ping
        if content is DONE:
            self.done = True
            return
        if isinstance(content.get("error"), dict):
            self.error = content["error"]
            return
        for key, value in content.items():
            if key == "choices":
                continue
            if key == "usage":
                if isinstance(value, dict):
                    self.usage = usage_of(value)
                    self._answer[key] = value
            elif value is not None:
                self._answer[key] = value
        for piece in _objects(content.get("choices") or [], "choices"):
            self._add(piece)

    def _add(self, piece: dict[str, Any]) -> None:
        index = _number(piece, 0)
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        for key, value in piece.items():
            if key == "delta":
                message = choice.setdefault("message", {"role": "assistant", "content": None})
                (delta,) = _objects([value or {}], "deltas")
                if isinstance(message, dict):
                    _merge(message, delta)
            elif key != "index":
                _merge(choice, {key: value})


def _objects(values: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise MalformedAnswer(f"sent {what} that are not objects")
    return values


def _number(piece: dict[str, Any], default: int) -> int:
    """The place of a choice or of a tool call among its like."""
    number = piece.get("index", default)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _MOST:
        raise MalformedAnswer(f"sent the index {number!r:.40}; expected 0 to {_MOST}")
    return number


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        before = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif key == "tool_calls":
            into[key] = _numbered(before or [], _objects(value, "tool calls"))
        elif before is None:
            into[key] = value
        elif key in _GROWING and isinstance(value, str) and isinstance(before, str):
            into[key] = before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            into[key] = before + value
        else:
            into[key] = value


def _numbered(calls: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls come in pieces, each with the number of its call; the answer has no numbers."""
    for piece in pieces:
        number = _number(piece, len(calls))
        while len(calls) <= number:
            calls.append({})
        _merge(calls[number], {key: value for key, value in piece.items() if key != "index"})
    return calls
