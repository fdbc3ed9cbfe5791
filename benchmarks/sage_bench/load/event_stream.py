"""Server-sent events as they come, in any cut (WHATWG HTML, section 9.2). Pure."""

from __future__ import annotations

import re

_EVENT_END = re.compile(rb"\r?\n\r?\n")

# An event longer than this is no piece of an answer.
MAX_EVENT_BYTES = 1 << 20


class EventTooLong(ValueError):  # noqa: N818 - an outcome of the peer's making
    """No end of an event within :data:`MAX_EVENT_BYTES`."""


class EventStream:
    """Cuts a byte stream into the payloads of its events."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads (the ``data:`` lines joined) of the events that ``data`` completes.

        Raises:
            EventTooLong: an event does not end.
        """
        if self._rest:
            data = self._rest + data
        pieces = _EVENT_END.split(data) if b"\r" in data else data.split(b"\n\n")
        self._rest = pieces.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return [payload for piece in pieces if (payload := _payload(piece)) is not None]

    @property
    def mid_event(self) -> bool:
        """Whether an event has begun that has not ended."""
        return bool(self._rest.strip())


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = [
        line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")
    ]  # comments, ids and event names carry nothing that we count
    return b"\n".join(lines) if lines else None
