"""One keep-alive HTTP/1.1 connection to an engine, and the exchange that runs on it.

Lean on purpose: a protocol over httptools whose callbacks append bytes and wake one waiter. A
general HTTP client costs more than the rest of the gateway together (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from sage_gateway.dead_peers import notice_dead_peer
from sage_gateway.inline_task import Waiter, turn_of, waiter
from sage_prefect.control_plane.events import FailureCause

# The engine is read no further while the client has this much still to take.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
_JOINED_BYTES = 32 * 1024  # a copy of so little is cheaper than a list of buffers


class UpstreamError(Exception):
    """An exchange with an engine failed; the message names no engine and holds no secret.

    Args:
        cause: what went wrong, for the control plane and the metrics.
        message: for people.
        answered: some byte of an answer had come.
    """

    def __init__(self, cause: FailureCause, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one exchange, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    """From the request sent to the first byte of the answer (its end, when it does not stream)."""
    idle_s: float = 120.0
    """Between two pieces of an answer."""
    unreachable_s: float = 20.0
    """A peer that acknowledges nothing for so long is gone; engines and clients alike."""


class Exchange:
    """One request and its answer. Read the head with :meth:`head`, then the body.

    ``status`` and ``content_type`` are set once :meth:`head` has returned.
    """

    __slots__ = (
        "_buffered",
        "_chunks",
        "_connection",
        "_finished",
        "_idle_s",
        "_last_activity",
        "_limit_s",
        "_loop",
        "_paused",
        "_turn",
        "_waiter",
        "_waits_for_end",
        "chunked",
        "content_length",
        "content_type",
        "error",
        "first_byte_at",
        "head_done",
        "retry_after",
        "status",
    )

    def __init__(self, connection: UpstreamConnection, timeouts: Timeouts) -> None:
        self._connection = connection
        self._loop = connection.loop
        self._turn = connection.turn
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._finished = False
        self._paused = False
        self._waiter: Waiter | None = None
        self._waits_for_end = False
        self.error: UpstreamError | None = None
        self.status = 0
        self.content_type = b""
        self.content_length: int | None = None
        self.chunked = False
        self.retry_after: bytes | None = None
        self.head_done = False
        self.first_byte_at = 0.0
        # The connection's timer asks now and then: activity is a number, not a new timer.
        self._limit_s = timeouts.first_byte_s
        self._idle_s = timeouts.idle_s
        self._last_activity = self._loop.time()

    # -- for the caller -------------------------------------------------------------------

    async def head(self) -> None:
        """Wait for status line and headers.

        Raises:
            UpstreamError: connection lost, time limit, or not HTTP.
        """
        while not self.head_done:
            self._raise_if_failed()
            await self._woken()
        self._raise_if_failed(after_head=True)

    async def read(self) -> bytes:
        """The bytes that have come since the last call; ``b""`` at the end of the answer.

        Raises:
            UpstreamError: the answer broke off.
        """
        while not self._chunks:
            self._raise_if_failed()
            if self._finished:
                return b""
            await self._woken()
        return self._take()

    async def read_all(self, limit: int) -> tuple[bytes, bool]:
        """The body up to its end or to ``limit`` bytes, and whether that was the end.

        Raises:
            UpstreamError: the answer broke off.
        """
        while not self._finished and self._buffered <= limit:
            self._raise_if_failed()
            self._waits_for_end = True
            self._resume()  # so much may have come between head() and this call that it paused
            await self._woken()
        self._waits_for_end = False
        self._raise_if_failed()
        return self._take() if self._chunks else b"", self._finished

    def abort(self, cause: FailureCause, message: str) -> None:
        """End the exchange by closing its connection: engines take that as cancellation."""
        if not self._finished and self.error is None:
            self.fail(cause, message)

    # -- for the connection ---------------------------------------------------------------

    def on_head(self) -> None:
        self.head_done = True
        self._last_activity = self._loop.time()

    def on_body(self, data: bytes) -> None:
        now = self._loop.time()
        if not self.first_byte_at:
            self.first_byte_at = now
            self._limit_s = self._idle_s
        self._last_activity = now
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > HIGH_WATER:
            if not self._waits_for_end and not self._paused:
                self._paused = True
                self._connection.pause()
            self.wake()
        elif not self._waits_for_end:
            self.wake()

    def on_end(self) -> None:
        self._finished = True
        self.wake()

    def fail(self, cause: FailureCause, message: str) -> None:
        """Mark the exchange as failed and drop the connection."""
        if self._finished or self.error is not None:
            return
        self.error = UpstreamError(cause, message, answered=self.head_done)
        self._connection.close()
        self.wake()

    def wake(self) -> None:
        waiting = self._waiter
        if waiting is not None:
            self._waiter = None
            if not waiting.done():
                waiting.set_result(None)

    # -- inside ---------------------------------------------------------------------------

    def _woken(self) -> Waiter:
        """To be awaited: what :meth:`wake` ends."""
        waiting = self._waiter = waiter(self._turn)
        return waiting

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        self._resume()
        return data

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._last_activity = self._loop.time()
            self._connection.resume()

    def _raise_if_failed(self, *, after_head: bool = False) -> None:
        # What came before the failure is still handed out by read(): a stream keeps its bytes.
        if self.error is not None and not (after_head and self._chunks):
            raise self.error

    def time_left(self) -> float | None:
        """Seconds until its time limit is to be checked again; None: it is over. Fails it when its
        time has come."""
        if self._finished or self.error is not None:
            return None
        wait = self._last_activity + self._limit_s - self._loop.time()
        if self._paused:
            # The client is slow, not the engine: its own limit is the relay's business.
            wait = self._limit_s
        if wait > 0:
            # Never later than the idle limit: it starts to count with the first byte.
            return min(wait + 0.001, self._idle_s)
        what = "sent nothing more" if self.first_byte_at else "did not answer"
        self.fail(FailureCause.TIMEOUT, f"{what} within {self._limit_s:g} s")
        return None


class UpstreamConnection:
    """A connection to one engine; carries one exchange at a time. The loop's protocol, by its
    methods: a base class would cost the compiled one its fast attributes.

    Args:
        on_idle: called when an exchange has ended cleanly and the connection may be used again.
        on_closed: called once when the connection is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_idle: Callable[[UpstreamConnection], None],
        on_closed: Callable[[UpstreamConnection], None],
    ) -> None:
        self.loop = loop
        self.turn = turn_of(loop)
        self.used = 0
        self.idle_since = 0.0
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._head_bytes = 0
        self._closed = False
        # One timer for all exchanges: it is left to ring, and asks the exchange that is there then.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def alive(self) -> bool:
        """Whether a request may be written now."""
        return self._transport is not None and not self._closed and not self._transport.is_closing()

    def send(self, parts: list[bytes], timeouts: Timeouts) -> Exchange:
        """Write a whole request and return its exchange.

        Raises:
            UpstreamError: the engine has closed the connection already.
        """
        if self._transport is None or self._exchange is not None:
            raise RuntimeError("connection is not free. This is a bug.")
        if not self.alive:
            raise UpstreamError(FailureCause.RESET, "closed the connection at once")
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self.used += 1
        exchange = self._exchange = Exchange(self, timeouts)
        self._ring_within(min(timeouts.first_byte_s, timeouts.idle_s))
        if len(parts[-1]) <= _JOINED_BYTES:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)
        return exchange

    def pause(self) -> None:
        if self._transport is not None and not self._closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._closed:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; what was not sent yet is thrown away."""
        self._closed = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.turn.enter()
        try:
            self._take(data)
        finally:
            self.turn.leave()

    def _take(self, data: bytes) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None:
            # An engine that speaks unasked: never hand its bytes to the next request.
            self.close()
            return
        if not exchange.head_done:
            self._head_bytes += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            exchange.fail(FailureCause.PROTOCOL, f"answered with invalid HTTP ({_clean(error)})")
            return
        if not exchange.head_done and self._head_bytes > MAX_HEAD_BYTES:
            exchange.fail(
                FailureCause.PROTOCOL, f"answered with more than {MAX_HEAD_BYTES} bytes of headers"
            )

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.turn.enter()
        try:
            self._lose(exc)
        finally:
            self.turn.leave()

    def _lose(self, exc: Exception | None) -> None:
        self._closed = True
        self._stop_timer()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.head_done and exchange.content_length is None and not exchange.chunked:
                if exc is None:
                    exchange.on_end()  # HTTP/1.0 manner: the end of the connection is the end
                else:
                    exchange.fail(FailureCause.RESET, "reset the connection")
            elif isinstance(exc, TimeoutError):
                exchange.fail(FailureCause.RESET, "cannot be reached any more")
            elif exchange.head_done:
                exchange.fail(
                    FailureCause.RESET, "closed the connection in the middle of its answer"
                )
            else:
                exchange.fail(FailureCause.RESET, "closed the connection without an answer")
        self._on_closed(self)

    # -- httptools ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._exchange is None:
            self.close()  # an answer to nothing: see data_received

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        lower = name.lower()
        if lower == b"content-type":
            exchange.content_type = value
        elif lower == b"content-length":
            exchange.content_length = int(value)
        elif lower == b"transfer-encoding":
            exchange.chunked = True
        elif lower == b"retry-after":
            exchange.retry_after = value

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            exchange.status = status
            exchange.on_head()

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_body(data)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or self._parser is None or not exchange.head_done:
            return  # 100 Continue and its like
        self._exchange = None
        reusable = self._parser.should_keep_alive() and not self._closed
        exchange.on_end()
        if reusable:
            self.idle_since = self.loop.time()
            self._on_idle(self)
        else:
            self.close()

    # -- time limits ----------------------------------------------------------------------

    def _ring_within(self, wait: float) -> None:
        at = self.loop.time() + wait
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.loop.call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange is None:
            return
        self.turn.enter()
        try:
            wait = exchange.time_left()
        finally:
            self.turn.leave()
        if wait is not None:
            self._ring_within(wait)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _clean(error: Exception) -> str:
    """A parser's complaint without what the peer sent."""
    return str(error)[:80] or type(error).__name__


async def open_connection(
    connection: UpstreamConnection,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    limits: Timeouts,
) -> None:
    """Connect.

    Raises:
        UpstreamError: refused, unknown host, TLS failure, or time limit (cause CONNECT).
    """
    connecting = connection.loop.create_task(
        connection.loop.create_connection(
            lambda: cast("asyncio.Protocol", connection),
            host,
            port,
            ssl=tls,
            server_hostname=host if tls else None,
        )
    )
    try:
        # Not wait_for: of Python 3.11 it swallows a cancellation that comes together with the end.
        done, _ = await asyncio.wait({connecting}, timeout=limits.connect_s)
    except asyncio.CancelledError:
        connecting.cancel()
        connection.close()
        raise
    if not done:
        connecting.cancel()
        raise UpstreamError(
            FailureCause.CONNECT, f"did not accept a connection within {limits.connect_s:g} s"
        )
    try:
        transport, _ = connecting.result()
        opened = transport.get_extra_info("socket")
        if opened is not None:  # a simulated network has none
            notice_dead_peer(opened, limits.unreachable_s)
    except ssl.SSLError as refused:
        raise UpstreamError(FailureCause.CONNECT, f"TLS failed ({refused.reason})") from None
    except OSError as error:
        connection.close()  # it may be gone again already
        reason = error.strerror or type(error).__name__
        raise UpstreamError(FailureCause.CONNECT, f"cannot be reached ({reason})") from None
