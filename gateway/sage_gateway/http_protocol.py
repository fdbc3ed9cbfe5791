"""Uvicorn's HTTP protocol with limits that it does not have: on heads, and on slow clients.

The only module that touches uvicorn's internals (``HttpToolsProtocol``: ``cycle``, ``scope``,
``send_400_response``); tests/gateway/test_http_protocol.py is the contract test.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sage_gateway.auth import CallerMemo
from sage_gateway.client_exchange import ClientExchange
from sage_gateway.connection_limits import ConnectionLimits
from sage_gateway.errors import error_body
from sage_gateway.inline_task import turn_of
from sage_gateway.routes import InferenceRoute

MAX_HEADERS = 128
# After an answer that came before the body's end (413, 401): so much is read and thrown away,
# so that the client gets to read the answer, and no more.
MAX_DISCARDED = 128 << 20

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)

Serve = Callable[[ClientExchange], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class ProtocolSettings:
    """What the connections of one gateway share.

    Args:
        serve: serves a POST to one of ``routes``; everything else goes to the ASGI application.
        routes: by path.
    """

    max_header_bytes: int
    read_timeout_s: float
    serve: Serve
    routes: Mapping[bytes, InferenceRoute]
    connections: ConnectionLimits


def limited_protocol(
    max_header_bytes: int,
    read_timeout_s: float,
    serve: Serve,
    routes: Mapping[str, InferenceRoute],
    connections: ConnectionLimits,
) -> Callable[..., LimitedHttpProtocol]:
    """What uvicorn calls as its protocol class, with these bound.

    Args:
        serve: serves a POST to one of ``routes``; everything else goes to the ASGI application.
    """
    settings = ProtocolSettings(
        max_header_bytes,
        read_timeout_s,
        serve,
        {path.encode("ascii"): route for path, route in routes.items()},
        connections,
    )
    return partial(LimitedHttpProtocol, settings)


class HeadHoldingTransport:
    """Sends an answer's head together with the first bytes of its body: one system call, and the
    client wakes once. Everything else goes straight to the real transport.
    """

    __slots__ = ("_held", "_transport")

    def __init__(self, real: asyncio.Transport) -> None:
        self._transport = real
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            self._held = None
            self._transport.writelines((held, data))
        elif data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1":  # 100 Continue goes at once
            self._held = data
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def flush(self) -> None:
        """Send a head that no body followed."""
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedHttpProtocol(HttpToolsProtocol):
    """431 for a head that is too big, 408 for one that never ends; inference without ASGI.

    A POST to an inference route becomes a :class:`ClientExchange`, another request a cycle of
    uvicorn's. Both stand in ``cycle`` while they are served and wait in ``pipeline`` before.
    """

    wire: asyncio.Transport

    def __init__(self, settings: ProtocolSettings, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.serve = settings.serve
        self._routes = settings.routes
        self._max_header_bytes = settings.max_header_bytes
        self._read_timeout_s = settings.read_timeout_s
        self._connections = settings.connections
        self._address = ""
        self.turn = turn_of(self.loop)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._discarded = 0
        self._refusal: tuple[int, str] | None = None
        self._exchange: ClientExchange | None = None  # the one whose body comes in
        self._to_begin: ClientExchange | None = None
        self._is_between = True  # the last message has ended and the next one has not begun
        self._raw = b""  # what is being parsed, if it begins with a message
        self._known: _KnownHead | None = None
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_head = b""

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.wire = transport  # exchanges send heads and bodies together themselves
        self._holding = HeadHoldingTransport(transport)
        super().connection_made(self._holding)  # type: ignore[arg-type]
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else ""
        too_many = self._connections.enter(self._address)
        if too_many is not None:
            self._refuse(503, too_many, code="too_many_connections")
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.turn.enter()
        try:
            self._connections.leave(self._address)
            self._stop_head_timer()
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
            self._to_begin = None
            serving: Any = self.cycle
            waiting: list[Any] = [cycle for cycle, _ in self.pipeline]
            for exchange in (serving, *waiting):
                if isinstance(exchange, ClientExchange):
                    exchange.on_gone()
            if isinstance(serving, ClientExchange):
                self.cycle = None  # type: ignore[assignment]
            super().connection_lost(exc)
        finally:
            self.turn.leave()

    def data_received(self, data: bytes) -> None:
        self.turn.enter()
        try:
            if self._is_known(data):
                return
            if self._in_head:
                self._head_bytes += len(data)
            self._raw = data if self._is_between else b""
            super().data_received(data)
            self._raw = b""
            exchange = self._to_begin
            if exchange is not None:
                self._to_begin = None
                exchange.begin()
            if self._in_head and not self.transport.is_closing():
                if self._head_bytes > self._max_header_bytes:
                    self._refuse(431, "The request's headers are too big.")
                elif self._head_bytes and self._head_timer is None:
                    self._start_head_timer()
        finally:
            self.turn.leave()

    def _is_known(self, data: bytes) -> bool:
        """Serve a whole request whose head, but for its length, is the one before it on this
        connection: clients send the same head again and again, and it parses to the same."""
        known = self._known
        # Between messages, not only after an answer: that may have come before its request's end,
        # and what follows then is body, whatever it looks like.
        if known is None or not self._is_between or not data.startswith(known.before):
            return False
        cycle: Any = self.cycle
        if self.parser is None or (cycle is not None and not cycle.response_complete):
            return False
        start = len(known.before)
        end = data.find(b"\r", start, start + 10)
        length = data[start:end]
        if end < 0 or not length.isdigit() or not data.startswith(known.after, end):
            return False
        body_at = end + len(known.after)
        if len(data) != body_at + int(length):
            return False
        headers = known.headers.copy()
        headers[b"content-length"] = length
        exchange = ClientExchange(
            self, known.route, headers, keep_alive=True, chunks=True, expects_continue=False
        )
        exchange.memo = known.memo
        self._exchange = self.cycle = exchange  # type: ignore[assignment]
        exchange.on_body(data[body_at:])
        exchange.on_body_end()
        exchange.begin()
        return True

    def pause_writing(self) -> None:
        cycle: Any = self.cycle
        if isinstance(cycle, ClientExchange):
            cycle.on_pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.turn.enter()
        try:
            cycle: Any = self.cycle
            if isinstance(cycle, ClientExchange):
                cycle.on_resume()
            super().resume_writing()
        finally:
            self.turn.leave()

    # -- httptools ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # How much of the present data is this head is not known: the rest of it is counted.
        self._in_head = True
        self._is_between = False
        self._head_bytes = max(self._head_bytes, 1)
        self._discarded = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._in_head = False
        oversized = self._head_bytes > self._max_header_bytes and (
            sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
            > self._max_header_bytes
        )
        self._head_bytes = 0
        if self._head_timer is not None:
            self._stop_head_timer()
        if oversized or len(self.headers) > MAX_HEADERS:
            self._refusal = (431, "The request's headers are too big or too many.")
            raise ValueError("head over the limit")  # stops the parser; answered below
        parser = self.parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):  # a line without a version is read as 0.9
            self._refusal = (505, "The gateway speaks HTTP/1.1 and HTTP/1.0.")
            raise ValueError("another version")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and (hosts or version == "1.1"):
            self._refusal = (400, "The request must have one Host header.")
            raise ValueError("not one host")  # RFC 9112, 3.2
        if parser.get_method() == b"POST":
            route = self._routes.get(self.url) or self._routes.get(_path_of(self.url))
            if route is not None:
                self._take(route)
                return
        self._exchange = None
        headers, url, expects = self.headers, self.url, self.expect_100_continue
        super().on_message_begin()  # makes the scope that only ASGI needs
        self.headers.extend(headers)
        self.url, self.expect_100_continue = url, expects
        super().on_headers_complete()

    def _take(self, route: InferenceRoute) -> None:
        parser, before = self.parser, self.cycle
        is_current = parser.get_http_version() != "1.0"
        exchange = self._exchange = ClientExchange(
            self,
            route,
            dict(self.headers),
            keep_alive=is_current and parser.should_keep_alive(),
            chunks=is_current,
            expects_continue=self.expect_100_continue,
        )
        known = _known_head(self._raw, exchange) if exchange.keep_alive else None
        self._known = known
        if known is not None:
            exchange.memo = known.memo
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._to_begin = exchange
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        exchange: Any = self._exchange or self.cycle
        if exchange.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
        elif self._exchange is not None:
            self._exchange.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_between = True
        exchange = self._exchange
        if exchange is None:
            super().on_message_complete()
        elif not exchange.response_complete:
            exchange.on_body_end()

    # -- answers --------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, ClientExchange):
            # Its predecessor's answer has just left: begin when that one's code has returned.
            self.loop.call_soon(self._begin_waiting, cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _begin_waiting(self, exchange: ClientExchange) -> None:
        self.turn.enter()
        try:
            if not exchange.gone:
                exchange.begin()
        finally:
            self.turn.leave()

    def on_response_complete(self) -> None:
        self._holding.flush()
        self.server_state.total_requests += 1
        if self.wire.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        # One timer for the connection's whole life: it is left to ring, and looks then.
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._on_idle)

    def _on_idle(self) -> None:
        self._idle_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            return  # its end starts the next one
        wait = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if wait > 0.01:
            self._idle_timer = self.loop.call_later(wait, self._on_idle)
        else:
            self.transport.close()

    def default_head(self) -> bytes:
        """Lines that every answer has (the date); made anew when uvicorn has made them anew."""
        headers = self.server_state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_head

    def cancel_exchange(self) -> None:
        """The time to finish is over."""
        cycle: Any = self.cycle
        if isinstance(cycle, ClientExchange):
            cycle.cancel()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's plain text, in OpenAI's shape; also the way out of an oversized head."""
        status, message = self._refusal or (400, msg)
        self._refuse(status, message)

    def _refuse(self, status: int, message: str, code: str = "invalid_http") -> None:
        if self.transport.is_closing():
            return
        body = error_body(status, message, code=code)
        self._holding.flush()
        self.transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (STATUS_LINE[status], len(body), body)
        )
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._read_timeout_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            if self._head_bytes:
                self._refuse(
                    408, f"The request's head was not complete within {self._read_timeout_s:g} s."
                )
            else:
                self.transport.close()


@dataclass(frozen=True, slots=True)
class _KnownHead:
    """A head that was parsed, cut around the digits of its content-length.

    It belongs to one connection and ends with it: it holds the client's key.
    """

    before: bytes
    after: bytes
    headers: dict[bytes, bytes]
    route: InferenceRoute
    memo: CallerMemo


def _known_head(data: bytes, exchange: ClientExchange) -> _KnownHead | None:
    """The head of ``data``, if that is all of the one request ``exchange`` and nothing about it is
    special; the parser has accepted its head.

    Args:
        data: begins with a message; empty if it is not known to.
    """
    headers = exchange.headers
    end = data.find(b"\r\n\r\n")
    if end < 0 or not data.startswith(b"POST ") or b"transfer-encoding" in headers:
        return None
    if b"expect" in headers or b"upgrade" in headers or b"connection" in headers:
        return None
    found = _CONTENT_LENGTH.findall(data, 0, end + 2)
    place = _CONTENT_LENGTH.search(data, 0, end + 2)
    if place is None or len(found) != 1 or len(data) != end + 4 + int(place[1]):
        return None  # another request may follow, and these headers may be that one's
    before, after = data[: place.start(1)], data[place.end(1) : end + 4]
    return _KnownHead(before, after, headers, exchange.route, CallerMemo())


def _path_of(url: bytes) -> bytes:
    """The path of a request's target, without query and with escapes resolved."""
    try:
        path: bytes = httptools.parse_url(url).path
    except httptools.HttpParserInvalidURLError:
        return b""  # uvicorn's own parsing answers it
    return unquote_to_bytes(path) if b"%" in path else path
