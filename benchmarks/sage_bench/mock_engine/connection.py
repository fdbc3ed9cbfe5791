"""HTTP/1.1 for servers that must misbehave on command: a protocol over httptools that writes raw
bytes, so that an answer can be cut, be too long, or be no HTTP at all."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sage_bench.mock_engine.faults import Fault
from sage_prefect.common.errors import MissingDependencyError

try:
    import httptools
except ModuleNotFoundError as error:
    raise MissingDependencyError("httptools", "gateway", "the mock engine") from error

MAX_BODY_BYTES = 64 << 20
_NOISE = b"\x00\x15\x03garbage\xff\r\n\r\n"
_NO_EVENT = b"data: {this is no event\n\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request."""

    method: bytes
    path: bytes
    """Without the query."""
    headers: dict[bytes, bytes]
    """Names in lower case."""
    body: bytes


class Service(Protocol):
    """Answers requests."""

    def serve(self, request: Request, responder: Responder) -> None:
        """Answer now or later, through ``responder``."""

    def connected(self, connection: Connection) -> None:
        """A connection was opened."""

    def disconnected(self, connection: Connection) -> None:
        """It is gone."""


class Responder:
    """One answer on its way, with the fault that befalls it.

    After the client has gone, or the fault has struck, what is sent goes nowhere.

    Args:
        connection: where it goes.
        keep_alive: the connection may serve on.
    """

    __slots__ = ("_connection", "_keep_alive", "_left", "fault", "on_gone", "open", "sent_bytes")

    def __init__(self, connection: Connection, *, keep_alive: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self._left: int | None = None
        self.open = True
        self.sent_bytes = 0
        self.fault: Fault | None = None
        self.on_gone: Callable[[], None] | None = None
        """Called once if the client goes before the answer has ended."""

    def befall(self, fault: Fault) -> None:
        """Let a fault strike this answer (before anything is sent)."""
        self.fault = fault
        if fault.kind in ("kill", "truncate", "hang", "garbage_event"):
            self._left = fault.after_bytes
            if not fault.after_bytes and fault.kind != "garbage_event":
                self._strike(fault)
        elif fault.kind == "garbage":
            self._write(_NOISE)
            self._finish(close=True)

    def whole(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send a complete answer."""
        if not self.open:
            return
        fault, length = self.fault, len(body)
        if fault is not None and fault.kind == "wrong_length":
            length = max(0, length + fault.extra)
        elif fault is not None and fault.kind == "garbage_event":
            body, self._left = b"{this is no JSON", None
            length = len(body)
        kind = () if any(name == b"content-type" for name, _ in headers) else (_JSON,)
        self._write(self._head(status, *kind, *headers, (b"content-length", b"%d" % length)))
        self._body(body)
        self._finish(close=fault is not None)

    def begin_stream(self, *headers: tuple[bytes, bytes]) -> None:
        """Send the head of a stream of events."""
        if self.open:
            self._write(
                self._head(
                    200,
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"transfer-encoding", b"chunked"),
                    *headers,
                )
            )

    def chunk(self, data: bytes) -> None:
        """Send a piece of a stream."""
        if not self.open or not data:
            return
        fault, size = self.fault, len(data)
        if fault is not None and fault.kind == "wrong_length" and not self.sent_bytes:
            size = max(1, size + fault.extra)
        elif fault is not None and fault.kind == "garbage_event" and self._left is not None:
            self._left -= size
            if self._left < 0:
                self._left = None
                data += _NO_EVENT
                size = len(data)
        if self._left is not None and fault is not None and fault.kind != "garbage_event":
            # The cut falls inside the chunk that the client was told of.
            self._write(b"%x\r\n" % size)
            self._body(data)
            if self.open:
                self._write(b"\r\n")
            return
        self.sent_bytes += len(data)
        self._write(b"%x\r\n%b\r\n" % (size, data))

    def end_stream(self) -> None:
        """End a stream."""
        if self.open:
            self._write(b"0\r\n\r\n")
            self._finish(close=self.fault is not None)

    def gone(self) -> None:
        """For the connection: it is lost."""
        was_open, self.open = self.open, False
        if self.on_gone is not None and (was_open or self.fault is not None):
            on_gone, self.on_gone = self.on_gone, None
            on_gone()

    # -- inside ---------------------------------------------------------------------------

    def _body(self, data: bytes) -> None:
        if self._left is not None and len(data) >= self._left:
            data = data[: self._left]
            self.sent_bytes += len(data)
            self._write(data)
            if self.fault is not None:
                self._strike(self.fault)
            return
        if self._left is not None:
            self._left -= len(data)
        self.sent_bytes += len(data)
        self._write(data)

    def _strike(self, fault: Fault) -> None:
        self.open = False
        if fault.kind == "kill":
            self._connection.abort()
        elif fault.kind == "truncate":
            self._connection.close()

    def _finish(self, *, close: bool) -> None:
        self.open = False
        self.on_gone = None
        self._connection.answered(self, keep_alive=self._keep_alive and not close)

    def _write(self, data: bytes) -> None:
        self._connection.write(data)

    def _head(self, status: int, *headers: tuple[bytes, bytes]) -> bytes:
        phrase = http.HTTPStatus(status).phrase.encode()
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        connection = b"" if self._keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, phrase, lines, connection)


_JSON = (b"content-type", b"application/json")


class Connection(asyncio.Protocol):
    """One client's connection; serves one request after the other.

    Args:
        service: answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._responder: Responder | None = None
        self._muted = False
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._muted:
            return
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what is written has left."""
        if self._transport is not None and not self._muted:
            self._transport.close()

    def abort(self) -> None:
        """Reset: the peer sees a dead process. What has been written leaves first, so far as the
        socket takes it at once."""
        if self._transport is not None:
            self._transport.abort()

    def mute(self) -> None:
        """From now on nothing is read and nothing leaves, and the peer is told nothing of it."""
        if self._transport is not None and not self._muted:
            self._muted = True
            self._transport.pause_reading()

    def answered(self, responder: Responder, *, keep_alive: bool) -> None:
        """An answer is complete."""
        if self._responder is responder:
            self._responder = None
        if not keep_alive:
            self.close()

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._service.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.write(
                b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.gone()
        self._service.disconnected(self)

    # -- httptools ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._responder is not None:
            self.close()  # pipelining: no client of ours does it, and vLLM's server may queue it
        self._url, self._headers, self._pieces, self._bytes = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        if self._bytes > MAX_BODY_BYTES:
            self.abort()
            return
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        path = self._url.partition(b"?")[0]
        request = Request(self._parser.get_method(), path, self._headers, b"".join(self._pieces))
        self._pieces = []
        keep_alive = self._parser.should_keep_alive()
        responder = self._responder = Responder(self, keep_alive=keep_alive)
        self._service.serve(request, responder)
