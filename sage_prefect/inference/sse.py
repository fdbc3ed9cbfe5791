"""Server-sent events: bytes in any pieces in, whole events out. Pure.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from typing import NamedTuple

from sage_prefect.common.errors import EngineUnavailable

_MAX_EVENT_BYTES = 16 * 2**20


class ServerSentEvent(NamedTuple):
    """One event. ``event`` is ``"message"`` where the stream names none."""

    data: str
    event: str = "message"


class SSEParser:
    """Incremental parser; :meth:`feed` may cut the bytes anywhere, inside a character too."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0  # no line end before this offset of _rest
        self._after_cr = False
        self._at_start = True
        self._data: list[str] = []
        self._data_bytes = 0
        self._event = ""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that this piece completes.

        Raises:
            EngineUnavailable: an event of more than 16 MiB; this is no event stream.
        """
        events: list[ServerSentEvent] = []
        self._rest += chunk
        while (line := self._next_line()) is not None:
            event = self._line(line)
            if event is not None:
                events.append(event)
        if len(self._rest) + self._data_bytes > _MAX_EVENT_BYTES:
            raise EngineUnavailable(
                f"the engine sent an event of more than {_MAX_EVENT_BYTES} bytes.",
                hint="Is the URL that of an OpenAI-compatible server?",
            )
        return events

    def _next_line(self) -> bytes | None:
        """The next line without its end (LF, CR or CRLF), None when it is not whole yet."""
        if self._after_cr and self._rest:
            # CRLF is one line end, also when it came in two pieces.
            if self._rest[0] == 0x0A:
                del self._rest[0]
            self._after_cr = False
        lf = self._rest.find(b"\n", self._searched)
        cr = self._rest.find(b"\r", self._searched, lf if lf >= 0 else len(self._rest))
        end = cr if cr >= 0 else lf
        if end < 0:
            self._searched = len(self._rest)
            return None
        line = bytes(self._rest[:end])
        self._after_cr = self._rest[end] == 0x0D
        del self._rest[: end + 1]
        self._searched = 0
        return line

    def _line(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark
            self._at_start = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value.decode("utf-8", errors="replace"))
            self._data_bytes += len(value)
        elif name == b"event":
            self._event = value.decode("utf-8", errors="replace")
        # An empty name is a comment; id, retry and unknown fields mean nothing to us.
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event, self._data
        self._event, self._data, self._data_bytes = "", [], 0
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message")
