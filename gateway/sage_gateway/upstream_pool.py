"""Keep-alive connections to one engine: the freshest idle one is used first."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

from sage_gateway.upstream import (
    Exchange,
    Timeouts,
    UpstreamConnection,
    UpstreamError,
    open_connection,
)
from sage_prefect.control_plane.events import FailureCause

# Uvicorn, and with it vLLM, closes a connection that is idle for 5 s; ours are dropped before.
IDLE_LIMIT_S = 4.0
# A used connection that dies this soon was closed by the engine before it saw the request.
STALE_WITHIN_S = 1.0


class UpstreamPool:
    """Connections to one engine.

    Args:
        host, port: where the engine listens.
        tls: context for https, or None.
        timeouts: limits of connecting and of every exchange.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, timeouts: Timeouts
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.timeouts = timeouts
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def open_connections(self) -> int:
        return len(self._all)

    async def request(
        self, parts: list[bytes], timeouts: Timeouts | None = None
    ) -> tuple[Exchange, bool]:
        """Send a request; returns its exchange and whether the connection had been used before.

        A used connection may have been closed by the engine just now: an exchange on it that
        fails before any answer is worth one more try on a fresh one (:meth:`request_fresh`).

        Raises:
            UpstreamError: no connection could be made.
        """
        exchange = self._on_kept_connection(parts, timeouts or self.timeouts)
        if exchange is not None:
            return exchange, True
        return await self.request_fresh(parts, timeouts), False

    def _on_kept_connection(self, parts: list[bytes], limits: Timeouts) -> Exchange | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.alive and connection.idle_since >= connection.loop.time() - IDLE_LIMIT_S:
                return connection.send(parts, limits)
            connection.close()
        return None

    async def request_fresh(self, parts: list[bytes], timeouts: Timeouts | None = None) -> Exchange:
        """Send a request on a new connection.

        Raises:
            UpstreamError: no connection could be made.
        """
        limits = timeouts or self.timeouts
        loop = asyncio.get_running_loop()
        connection = UpstreamConnection(loop, self._on_idle, self._on_connection_closed)
        await open_connection(connection, self._host, self._port, self._tls, limits)
        exchange = connection.send(parts, limits)
        self._all.add(connection)
        return exchange

    async def exchange(
        self, parts: list[bytes], bind: Callable[[Exchange], None], is_wanted: Callable[[], bool]
    ) -> Exchange:
        """Send a request and wait for the head of its answer; once more if its connection had been
        closed by the engine before it came.

        Args:
            bind: is given the exchange as soon as it is under way, so that it can be aborted.
            is_wanted: whether somebody still waits for the answer.

        Raises:
            UpstreamError: the engine could not be reached, or failed.
        """
        kept = self._on_kept_connection(parts, self.timeouts)
        exchange = kept if kept is not None else await self.request_fresh(parts)
        sent_at = time.monotonic()
        bind(exchange)
        try:
            await exchange.head()
        except UpstreamError as error:
            stale = (
                kept is not None
                and not error.answered
                and error.cause is FailureCause.RESET
                and is_wanted()
                and time.monotonic() - sent_at < STALE_WITHIN_S
            )
            if not stale:
                raise
            exchange = await self.request_fresh(parts)
            bind(exchange)
            await exchange.head()
        return exchange

    def close(self) -> None:
        """Close idle connections now and busy ones when their exchange ends."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _on_idle(self, connection: UpstreamConnection) -> None:
        if self._closed:
            connection.close()
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(IDLE_LIMIT_S, self._sweep)

    def _on_connection_closed(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been idle for too long (some engines give each connection a thread)."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        horizon = loop.time() - IDLE_LIMIT_S
        kept = [c for c in self._idle if c.alive and c.idle_since > horizon]
        dropped = [c for c in self._idle if c not in kept]
        self._idle = kept
        for connection in dropped:
            connection.close()
        if kept:
            self._sweeper = loop.call_later(IDLE_LIMIT_S, self._sweep)
