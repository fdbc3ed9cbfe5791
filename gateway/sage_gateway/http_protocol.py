"""Uvicorn's HTTP protocol with limits that it does not have: on heads, and on slow clients.

The only module that touches uvicorn's internals (``HttpToolsProtocol``: ``cycle``, ``scope``,
``send_400_response``); tests/gateway/test_http_protocol.py is the contract test.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sage_gateway.errors import error_body

MAX_HEADERS = 128
# After an answer that came before the body's end (413, 401): so much is read and thrown away,
# so that the client gets to read the answer, and no more.
MAX_DISCARDED = 128 << 20

ABORT = "sage.abort"


def limited_protocol(max_header_bytes: int, read_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol class with these limits bound (uvicorn wants a class, not an instance)."""
    return type(
        "LimitedHttpProtocol",
        (LimitedHttpProtocol,),
        {"max_header_bytes": max_header_bytes, "read_timeout_s": read_timeout_s},
    )


class HeadHoldingTransport:
    """Sends an answer's head together with the first bytes of its body: one system call, and the
    client wakes once. Everything else goes straight to the real transport.
    """

    __slots__ = ("_held", "_real")

    def __init__(self, real: asyncio.Transport) -> None:
        self._real = real
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            self._held = None
            self._real.writelines((held, data))
        elif data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1":  # 100 Continue goes at once
            self._held = data
        else:
            self._real.write(data)

    def flush(self) -> None:
        """Send a head that no body followed."""
        held, self._held = self._held, None
        if held is not None and not self._real.is_closing():
            self._real.write(held)

    def close(self) -> None:
        self.flush()
        self._real.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class LimitedHttpProtocol(HttpToolsProtocol):
    """431 for a head that is too big, 408 for one that never ends.

    Each request's scope carries ``extensions[ABORT]``: a callable that cuts the connection, for
    an answer that broke off and must not look finished.
    """

    max_header_bytes = 64 << 10
    read_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._discarded = 0
        self._refusal: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._holding = HeadHoldingTransport(transport)
        super().connection_made(self._holding)  # type: ignore[arg-type]
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            if self._head_bytes > self.max_header_bytes:
                self._refuse(431, "The request's headers are too big.")
            elif self._head_bytes and self._head_timer is None:
                self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # How much of the present data is this head is not known: the rest of it is counted.
        self._in_head = True
        self._head_bytes = max(self._head_bytes, 1)
        self._discarded = 0
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions

    def on_headers_complete(self) -> None:
        self._in_head = False
        oversized = self._head_bytes > self.max_header_bytes and (
            sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
            > self.max_header_bytes
        )
        self._head_bytes = 0
        self._stop_head_timer()
        if oversized or len(self.headers) > MAX_HEADERS:
            self._refusal = (431, "The request's headers are too big or too many.")
            raise ValueError("head over the limit")  # stops the parser; answered below
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
            return
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._holding.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's plain text, in OpenAI's shape; also the way out of an oversized head."""
        status, message = self._refusal or (400, msg)
        self._refuse(status, message)

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(status, message, code="invalid_http")
        self._holding.flush()
        self.transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (STATUS_LINE[status], len(body), body)
        )
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.read_timeout_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            if self._head_bytes:
                self._refuse(
                    408, f"The request's head was not complete within {self.read_timeout_s:g} s."
                )
            else:
                self.transport.close()
