"""Relay of one server-sent event stream: bytes pass as they come, event by event.

A complete event leaves at once; the piece of an event that has not ended yet waits for its end
(no client could use it), so that the stream can always be ended by an error event of its own.
Only events that carry token counts are looked into.
"""

from __future__ import annotations

import re
from collections import deque

import orjson

from sage_gateway.errors import error_event
from sage_gateway.usage import NO_USAGE, Usage, usage_of

# An event longer than this passes in pieces: it is data, not accounting.
MAX_HELD = 64 * 1024

# Where a reason to end is looked for.
_TAIL = 8192

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DONE = re.compile(rb"(?:^|\n)data:[ \t]*\[DONE\][ \t]*(?:\r?\n|$)")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')


class SseRelay:
    """Passes chunks on and remembers what the stream said of itself.

    Args:
        withhold_usage: drop the event that only reports token counts (the client did not ask
            for it; the gateway did).
    """

    def __init__(self, *, withhold_usage: bool) -> None:
        self.usage: Usage = NO_USAGE
        self.done = False
        """``[DONE]`` has come."""
        self._withhold = withhold_usage
        self._held = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._mid_event = False

    def feed(self, data: bytes) -> bytes:
        """What to send to the client now (maybe nothing)."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(b"\n\n"):
            end = _end_of_last_event(data)
            if end == 0 and len(data) > MAX_HELD:
                self._mid_event = True
                return data
            self._held = data[end:]
            data = data[:end]
            if not data:
                return b""
        if b'"usage"' in data and _USAGE.search(data) is not None:
            data = self._account(data)
        if data:
            self._mid_event = False
            self._passed(data)
        return data

    def rest(self) -> bytes:
        """At a clean end of the stream: what was held back."""
        held, self._held = self._held, b""
        if held:
            self._passed(held)
        return held

    @property
    def complete(self) -> bool:
        """Whether the stream said that the answer is whole (``[DONE]``, or a finish reason)."""
        return self.done or _FINISHED.search(b"".join(self._tail)[-_TAIL:]) is not None

    def broken_off(self, status: int, message: str) -> bytes:
        """The end of a stream that failed: an error event, after that of an event half sent."""
        before = b"\n\n" if self._mid_event else b""
        return before + error_event(status, message, code="answer_incomplete")

    def _passed(self, data: bytes) -> None:
        tail = self._tail
        tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(tail[0]) >= _TAIL:
            self._tail_bytes -= len(tail.popleft())
        if b"[DONE]" in data and _DONE.search(data) is not None:
            self.done = True

    def _account(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        position = 0
        for match in _EVENT_END.finditer(data):
            event = data[position : match.end()]
            position = match.end()
            if _USAGE.search(event) is None or not self._is_usage_only(event):
                kept.append(event)
        kept.append(data[position:])
        return b"".join(kept)

    def _is_usage_only(self, event: bytes) -> bool:
        payload = event.strip()
        if not payload.startswith(b"data:"):
            return False
        try:
            content = orjson.loads(payload[5:])
        except orjson.JSONDecodeError:
            return False
        if not isinstance(content, dict) or not isinstance(content.get("usage"), dict):
            return False
        self.usage = usage_of(content["usage"])
        return self._withhold and content.get("choices") == []


def _end_of_last_event(data: bytes) -> int:
    """Index after the last blank line, 0 when there is none."""
    plain = data.rfind(b"\n\n")
    windows = data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, windows + 4 if windows >= 0 else 0)
