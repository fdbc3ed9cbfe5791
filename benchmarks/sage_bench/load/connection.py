"""One keep-alive HTTP/1.1 connection of the load generator: a protocol over httptools.

Lean, because a client that is busy with itself measures itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sage_bench.load import record as outcome
from sage_bench.load.exchange import Exchange
from sage_prefect.common.errors import MissingDependencyError

try:
    import httptools
except ModuleNotFoundError as error:
    raise MissingDependencyError("httptools", "gateway", "the load generator") from error

if TYPE_CHECKING:
    from sage_bench.load.client import Client

Clock = Callable[[], float]


class Connection(asyncio.Protocol):
    """Carries one exchange at a time.

    Args:
        client: told when an exchange has closed and when the connection is free or gone.
        target: number of the client's target that it leads to.
        clock: seconds since the run's start.
    """

    __slots__ = (
        "_client",
        "_clock",
        "_dirty",
        "_ended",
        "_exchange",
        "_headers",
        "_parser",
        "_transport",
        "idle_since",
        "served",
        "target",
    )

    def __init__(self, client: Client, target: int, clock: Clock) -> None:
        self.target = target
        self.served = 0
        self.idle_since = 0.0
        self._client = client
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._ended: Exchange | None = None
        self._dirty = False
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[bytes, bytes] = {}

    @property
    def usable(self) -> bool:
        """Whether a request may be written now."""
        return (
            self._transport is not None
            and self._exchange is None
            and not self._transport.is_closing()
        )

    def send(self, head: bytes, exchange: Exchange) -> None:
        """Write a request; the connection must be :attr:`usable`."""
        if self._transport is None or self._exchange is not None:
            raise RuntimeError("connection is not free. This is a bug.")
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        exchange.record.reused = self.served > 0
        self.served += 1
        self._transport.writelines((head, exchange.request.body))
        exchange.sent(self._clock())

    def close(self) -> None:
        """Cut the connection; servers take that as cancellation. Its exchange is forgotten."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._client.connection_made(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None or self._parser is None:
            self.close()  # bytes that nobody asked for must not reach the next request
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._dirty = True
            self._give_up(outcome.PROTOCOL, f"invalid HTTP: {error}")
        if self._ended is not None:
            self._release(self._ended)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.closed:
            now = self._clock()
            if exchange.head_seen and not self._is_framed and exc is None:
                exchange.end(now)  # HTTP/1.0 manner
            else:
                exchange.lost(str(exc) if exc else "connection closed by the server", now)
            self._client.exchange_closed(exchange)
        self._client.connection_lost(self)

    # -- httptools ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = {}
        if self._ended is not None:
            self._dirty = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._exchange is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self._exchange.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.body(data, self._clock()):
            self.close()
            self._client.exchange_closed(exchange)

    def on_message_complete(self) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None or not exchange.head_seen:
            return  # 100 Continue
        self._exchange = None
        self._ended = exchange
        self._dirty = not parser.should_keep_alive()
        exchange.end(self._clock())

    # -- inside ---------------------------------------------------------------------------

    @property
    def _is_framed(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers

    def _release(self, exchange: Exchange) -> None:
        """After the parser has returned: whoever is told next may send on this connection."""
        self._ended = None
        if self._dirty:
            self.close()
        else:
            self.idle_since = self._clock()
            self._client.connection_idle(self)
        self._client.exchange_closed(exchange)

    def _give_up(self, error: str, detail: str) -> None:
        exchange = self._exchange
        self.close()
        if exchange is not None and not exchange.closed:
            exchange.fail(error, detail, self._clock())
            self._client.exchange_closed(exchange)
