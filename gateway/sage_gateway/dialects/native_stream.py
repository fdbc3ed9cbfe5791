"""Streams of engines that speak the client's API themselves: bytes pass, the end is watched."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import orjson

from sage_gateway.dialects.messages_answer import error_event
from sage_gateway.usage import NO_USAGE, Usage, usage_of

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
# An event longer than this passes in pieces, as in the relay of chat streams.
_MOST_HELD = 1024 * 1024


class NativeStream:
    """Passes whole events on and looks into those that say how the answer stands.

    Subclasses name the events in ``_watched`` and read them in ``_read``.
    """

    _watched: ClassVar[re.Pattern[bytes]]

    def __init__(self) -> None:
        self.usage: Usage = NO_USAGE
        self.done = False
        self._held = b""
        self._mid_event = False

    @property
    def complete(self) -> bool:
        """Whether the API's last event has come."""
        return self.done

    def feed(self, data: bytes) -> bytes:
        """The events that are whole by now, as they came."""
        data = self._held + data
        end = 0
        for match in _EVENT_END.finditer(data):
            self._look(data[end : match.start()])
            end = match.end()
        self._held = data[end:]
        if len(self._held) > _MOST_HELD:
            # Data, not accounting.
            end, self._held = len(data), b""
            self._mid_event = True
        elif end:
            self._mid_event = False
        return data[:end]

    def rest(self) -> bytes:
        """A last event without a blank line after it."""
        held, self._held = self._held, b""
        if held:
            self._look(held)
        return held

    def broken_off(self, status: int, message: str) -> bytes:
        """The API's own end of a stream that failed."""
        return (b"\n\n" if self._mid_event else b"") + self._failed(status, message)

    def _look(self, event: bytes) -> None:
        self._passed(event)
        if self._watched.search(event) is None:
            return
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        try:
            content = orjson.loads(b"\n".join(lines))
        except orjson.JSONDecodeError:
            return  # the client's to judge: bytes pass as they come
        if isinstance(content, dict):
            self._read(content)

    def _passed(self, event: bytes) -> None:
        """Every event passes here."""

    def _read(self, content: dict[str, Any]) -> None:
        raise NotImplementedError

    def _failed(self, status: int, message: str) -> bytes:
        raise NotImplementedError


class NativeMessages(NativeStream):
    """Anthropic's events."""

    _watched: ClassVar[re.Pattern[bytes]] = re.compile(
        rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop)"'
    )

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, Any] = {}

    def _read(self, content: dict[str, Any]) -> None:
        kind = content.get("type")
        if kind == "message_stop":
            self.done = True
            return
        holder = content.get("message") if kind == "message_start" else content
        counts = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(counts, dict):
            # The counts of message_delta hold for the whole message, as far as it has them.
            self._counts |= {name: count for name, count in counts.items() if count is not None}
            self.usage = usage_of(self._counts)

    def _failed(self, status: int, message: str) -> bytes:
        return error_event(status, message)


class NativeResponses(NativeStream):
    """Events of the Responses API."""

    _watched: ClassVar[re.Pattern[bytes]] = re.compile(
        rb'"type"\s*:\s*"response\.(?:created|completed|incomplete|failed)"'
    )

    def __init__(self) -> None:
        super().__init__()
        self._response: dict[str, Any] = {"object": "response", "output": []}
        self._number = -1

    def _passed(self, event: bytes) -> None:
        # Engines may put it before or after the text; the highest is the last in any case.
        for match in _NUMBER.finditer(event):
            self._number = max(self._number, int(match.group(1)))

    def _read(self, content: dict[str, Any]) -> None:
        response = content.get("response")
        if not isinstance(response, dict):
            return
        if content.get("type") == "response.created":
            self._response = response
            return
        self.done = True
        self.usage = usage_of(response.get("usage"))

    def _failed(self, status: int, message: str) -> bytes:
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        failed = {**self._response, "status": "failed", "error": {"code": code, "message": message}}
        content = {
            "type": "response.failed",
            "sequence_number": self._number + 1,
            "response": failed,
        }
        return b"event: response.failed\ndata: " + orjson.dumps(content) + b"\n\n"
