"""A chat stream as the events of Anthropic's Messages API, in the API's own order.

message_start; then block after block: start, deltas, stop; at last message_delta (why it ended, all
token counts) and message_stop. Chat counts tokens at the end only: the counts of message_start are
0, those of message_delta, which hold for the whole message, are the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import MalformedAnswer, Stamp
from sage_gateway.dialects.chat_events import (
    DONE,
    ChatEvents,
    choice_of,
    texts_of,
    tool_calls_of,
)
from sage_gateway.dialects.messages_answer import (
    error_event,
    message_usage,
    skeleton,
    stop_of,
    tool_block,
)
from sage_gateway.usage import NO_USAGE, Usage, usage_of

_DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}


class MessagesStream:
    """A :class:`~sage_gateway.dialects.base.StreamRelay` from chat chunks to message events."""

    def __init__(self, model: str, stamp: Stamp) -> None:
        self.usage: Usage = NO_USAGE
        self.done = False
        self.complete = False
        self._model = model
        self._stamp = stamp
        self._events = ChatEvents()
        self._out: list[bytes] = []
        self._begun = False
        self._open = ""
        """Type of the block that has begun and not stopped."""
        self._blocks = 0
        """Blocks that have begun."""
        self._calls = 0
        """Tool calls that have begun."""
        self._last: Mapping[str, Any] | None = None
        """The choice that says why the answer ended."""
        self._counts: Any = None

    def feed(self, data: bytes) -> bytes:
        """The events that these bytes of the chat stream lead to."""
        for chunk in self._events.feed(data):
            self._take(chunk)
        return self._drain()

    def rest(self) -> bytes:
        """At the end of the chat stream."""
        for chunk in self._events.rest():
            self._take(chunk)
        if self._last is not None:
            self._end()
        return self._drain()

    def broken_off(self, status: int, message: str) -> bytes:
        """Anthropic's error event."""
        return self._drain() + error_event(status, message)

    # -- inside ---------------------------------------------------------------------------

    def _take(self, chunk: Mapping[str, Any]) -> None:
        if self.done:
            return
        if chunk is DONE:
            if self._last is None:
                raise MalformedAnswer("ended its stream without finishing the answer")
            self._end()
            return
        self._begin()
        if isinstance(counts := chunk.get("usage"), Mapping):
            self._counts, self.usage = counts, usage_of(counts)
        choice = choice_of(chunk)
        if choice is None:
            return
        delta = choice.get("delta")
        if isinstance(delta, Mapping):
            self._say(delta)
        if choice.get("finish_reason"):
            self._last = choice

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._emit("message_start", message=skeleton(self._model, self._stamp))

    def _say(self, delta: Mapping[str, Any]) -> None:
        thought, said, refusal = texts_of(delta)
        if thought:
            self._piece("thinking", thought)
        if said or refusal:
            self._piece("text", said or refusal)
        for call in tool_calls_of(delta):
            number = call.get("index", self._calls)
            function = call["function"]
            if number == self._calls:
                block = tool_block(self._stamp, number, call.get("id"), function.get("name"))
                self._calls += 1
                self._start("tool_use", block)
            elif number != self._calls - 1 or self._open != "tool_use":
                raise MalformedAnswer("mixed the pieces of its tool calls")
            if piece := function.get("arguments"):
                self._delta({"type": "input_json_delta", "partial_json": piece})

    def _piece(self, kind: str, piece: str) -> None:
        if self._open != kind:
            self._start(kind, {"type": kind, kind: ""} | _signed(kind))
        self._delta({"type": _DELTAS[kind], kind: piece})

    def _start(self, kind: str, block: dict[str, Any]) -> None:
        self._stop()
        self._open = kind
        self._blocks += 1
        self._emit("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> None:
        self._emit("content_block_delta", index=self._blocks - 1, delta=delta)

    def _stop(self) -> None:
        if self._open:
            self._open = ""
            self._emit("content_block_stop", index=self._blocks - 1)

    def _end(self) -> None:
        if self.done or self._last is None:
            return
        self._stop()
        reason = stop_of(self._last, self._calls > 0)
        self._emit("message_delta", delta=reason, usage=message_usage(self._counts))
        self._emit("message_stop")
        self.done = self.complete = True

    def _emit(self, kind: str, **fields: Any) -> None:
        content = orjson.dumps({"type": kind, **fields})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), content))

    def _drain(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out


def _signed(kind: str) -> dict[str, str]:
    return {"signature": ""} if kind == "thinking" else {}
