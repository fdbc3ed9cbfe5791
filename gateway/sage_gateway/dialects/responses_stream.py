"""A chat stream as the events of the Responses API, in the API's own order.

created, in_progress; then item after item: added, (part added, deltas, text done, part done), item
done; at last completed, incomplete or failed. Every event has its number.
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
from sage_gateway.dialects.responses_answer import (
    call_item,
    message_item,
    reasoning_item,
    refusal_part,
    settle,
    skeleton,
    text_part,
)
from sage_gateway.usage import NO_USAGE, Usage, usage_of


class ResponsesStream:
    """A :class:`~sage_gateway.dialects.base.StreamRelay` from chat chunks to response events."""

    def __init__(self, body: Mapping[str, Any], stamp: Stamp) -> None:
        self.usage: Usage = NO_USAGE
        self.done = False
        self.complete = False
        self._stamp = stamp
        self._response = skeleton(body, stamp)
        self._events = ChatEvents()
        self._number = 0
        self._out: list[bytes] = []
        self._begun = False
        self._open: _Item | None = None
        self._calls = 0
        """Tool calls that have begun."""
        self._finish: Any = None
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
        if self._finish is not None:
            self._end()
        return self._drain()

    def broken_off(self, status: int, message: str) -> bytes:
        """``response.failed``: the terminal event that clients wait for."""
        self._begin()
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        self._response["status"] = "failed"
        self._response["error"] = {"code": code, "message": message}
        self._emit("response.failed", response=self._response)
        return self._drain()

    # -- inside ---------------------------------------------------------------------------

    def _take(self, chunk: Mapping[str, Any]) -> None:
        if self.done:
            return
        if chunk is DONE:
            if self._finish is None:
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
            self._say(delta, choice.get("logprobs"))
        if choice.get("finish_reason"):
            self._finish = choice["finish_reason"]

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._emit("response.created", response=self._response)
            self._emit("response.in_progress", response=self._response)

    def _say(self, delta: Mapping[str, Any], logprobs: Any) -> None:
        reasoning, said, refusal = texts_of(delta)
        if reasoning:
            self._item(_Reasoning).add(reasoning, None)
        if said:
            found = logprobs.get("content") if isinstance(logprobs, Mapping) else None
            self._item(_Text).add(said, found)
        if refusal:
            self._item(_Refusal).add(refusal, None)
        for call in tool_calls_of(delta):
            number = call.get("index", self._calls)
            if number == self._calls:
                self._calls += 1
                self._close()
                self._open = _Call(self, len(self._response["output"]), call)
            elif number != self._calls - 1 or not isinstance(self._open, _Call):
                raise MalformedAnswer("mixed the pieces of its tool calls")
            if piece := call["function"].get("arguments"):
                self._open.add(piece, None)

    def _item(self, kind: type[_Item]) -> _Item:
        if not isinstance(self._open, kind):
            self._close()
            self._open = kind(self, len(self._response["output"]), {})
        return self._open

    def _close(self, status: str = "completed") -> None:
        if self._open is not None:
            self._response["output"].append(self._open.close(status))
            self._open = None

    def _end(self) -> None:
        if self.done:
            return
        if self._open is None and not self._response["output"]:
            self._item(_Text)
        whole = self._finish not in ("length", "content_filter")
        self._close("completed" if whole else "incomplete")
        settle(self._response, self._finish, self._counts)
        self._emit(f"response.{self._response['status']}", response=self._response)
        self.done = self.complete = True

    def _emit(self, kind: str, **fields: Any) -> None:
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(content)))

    def _drain(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out

    # -- for the items --------------------------------------------------------------------

    @property
    def stamp(self) -> Stamp:
        """Of this answer."""
        return self._stamp

    def emit(self, kind: str, **fields: Any) -> None:
        """Add an event."""
        self._emit(kind, **fields)


class _Item:
    """An output item that grows."""

    def __init__(self, stream: ResponsesStream, index: int, call: Mapping[str, Any]) -> None:
        self._stream = stream
        self._index = index
        self._pieces: list[str] = []
        self._begin(call)

    def _begin(self, call: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def add(self, piece: str, logprobs: Any) -> None:
        """More of it."""
        raise NotImplementedError

    def close(self, status: str) -> dict[str, Any]:
        """It is whole, or the answer ends here: the item as it stands in the response."""
        raise NotImplementedError

    def _added(self, item: dict[str, Any]) -> None:
        self._id = item["id"]
        shown = {**item, "status": "in_progress"}
        self._stream.emit("response.output_item.added", output_index=self._index, item=shown)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._stream.emit(kind, item_id=self._id, output_index=self._index, **fields)

    def _part(self, kind: str, part: dict[str, Any]) -> None:
        self._emit(f"response.content_part.{kind}", content_index=0, part=part)

    def _done(self, item: dict[str, Any], status: str) -> dict[str, Any]:
        item["status"] = status
        self._stream.emit("response.output_item.done", output_index=self._index, item=item)
        return item


class _Text(_Item):
    def _begin(self, call: Mapping[str, Any]) -> None:
        self._logprobs: list[Any] = []
        self._added(message_item(self._stream.stamp, self._index, []))
        self._part("added", text_part(""))

    def add(self, piece: str, logprobs: Any) -> None:
        self._pieces.append(piece)
        found = logprobs if isinstance(logprobs, list) else []
        self._logprobs += found
        self._emit("response.output_text.delta", content_index=0, delta=piece, logprobs=found)

    def close(self, status: str) -> dict[str, Any]:
        said = "".join(self._pieces)
        self._emit("response.output_text.done", content_index=0, text=said, logprobs=self._logprobs)
        part = text_part(said, self._logprobs)
        self._part("done", part)
        return self._done(message_item(self._stream.stamp, self._index, [part]), status)


class _Refusal(_Item):
    def _begin(self, call: Mapping[str, Any]) -> None:
        self._added(message_item(self._stream.stamp, self._index, []))
        self._part("added", refusal_part(""))

    def add(self, piece: str, logprobs: Any) -> None:
        self._pieces.append(piece)
        self._emit("response.refusal.delta", content_index=0, delta=piece)

    def close(self, status: str) -> dict[str, Any]:
        said = "".join(self._pieces)
        self._emit("response.refusal.done", content_index=0, refusal=said)
        part = refusal_part(said)
        self._part("done", part)
        return self._done(message_item(self._stream.stamp, self._index, [part]), status)


class _Reasoning(_Item):
    def _begin(self, call: Mapping[str, Any]) -> None:
        self._added({**reasoning_item(self._stream.stamp, self._index, ""), "content": []})
        self._part("added", {"type": "reasoning_text", "text": ""})

    def add(self, piece: str, logprobs: Any) -> None:
        self._pieces.append(piece)
        self._emit("response.reasoning_text.delta", content_index=0, delta=piece)

    def close(self, status: str) -> dict[str, Any]:
        said = "".join(self._pieces)
        self._emit("response.reasoning_text.done", content_index=0, text=said)
        self._part("done", {"type": "reasoning_text", "text": said})
        return self._done(reasoning_item(self._stream.stamp, self._index, said), status)


class _Call(_Item):
    def _begin(self, call: Mapping[str, Any]) -> None:
        head = {"name": call["function"].get("name"), "arguments": ""}
        self._item = call_item(self._stream.stamp, self._index, call.get("id"), head)
        self._added(self._item)

    def add(self, piece: str, logprobs: Any) -> None:
        self._pieces.append(piece)
        self._emit("response.function_call_arguments.delta", delta=piece)

    def close(self, status: str) -> dict[str, Any]:
        said = "".join(self._pieces)
        self._emit("response.function_call_arguments.done", name=self._item["name"], arguments=said)
        return self._done({**self._item, "arguments": said}, status)
