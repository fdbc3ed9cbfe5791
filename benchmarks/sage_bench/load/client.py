"""Sends requests over kept-alive connections and hands out their records.

A request is never sent twice: a retry would hide what the server did with the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sage_bench.load import record as outcome
from sage_bench.load.connection import Clock, Connection
from sage_bench.load.exchange import Exchange
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import PATHS, LoadRequest
from sage_bench.load.target import Target

# Uvicorn, and with it vLLM, closes a connection that was idle for 5 s; ours are dropped before.
IDLE_LIMIT_S = 4.0


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How the client behaves."""

    timeout_s: float = 600.0
    """From a request's start to the end of its answer."""
    max_in_flight: int = 4096
    """Requests beyond it are not sent and make the run invalid: each takes a descriptor."""
    headers: tuple[tuple[str, str], ...] = ()
    """For every request."""
    api_key: str | None = field(default=None, repr=False)
    id_prefix: str = "load"
    """Requests carry ``x-request-id: PREFIX-INDEX``."""


@dataclass(slots=True)
class _Flight:
    """A request on its way: what must be ended with it."""

    done: Callable[[RequestRecord], None]
    timer: asyncio.TimerHandle | None = None
    connection: Connection | None = None
    connecting: asyncio.Task[None] | None = None


class Client:
    """All connections of a run. Belongs to one event loop; use as an async context manager.

    Args:
        targets: requests go to them in turn.
        options: limits and headers.
        clock: monotonic seconds; every record counts from :attr:`epoch` on it.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        options: ClientOptions | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.targets = tuple(targets)
        self.options = options or ClientOptions()
        self.epoch = clock()
        self.connections_opened = 0
        self.most_in_flight = 0
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tls = [target.tls_context() for target in targets]
        self._heads = [self._common_head(target) for target in targets]
        self._idle: list[list[Connection]] = [[] for _ in targets]
        self._open: set[Connection] = set()
        self._flights: dict[Exchange, _Flight] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._all_closed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        connecting = [f.connecting for f in self._flights.values() if f.connecting]
        self.cut_off("the client was closed")
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        if self._open:
            self._all_closed = self._loop.create_future()
            await self._all_closed

    def begin(self) -> None:
        """Set the run's start to now."""
        self.epoch = self._clock()

    def now(self) -> float:
        """Seconds since the run's start."""
        return self._clock() - self.epoch

    @property
    def in_flight(self) -> int:
        """Requests started and not ended."""
        return len(self._flights)

    def start(
        self,
        index: int,
        request: LoadRequest,
        scheduled_s: float,
        done: Callable[[RequestRecord], None],
        *,
        warmup: bool = False,
    ) -> None:
        """Send a request now. ``done`` gets its record once: when it has ended, for better or
        worse."""
        target = index % len(self.targets)
        record = RequestRecord(
            index=index,
            request_id=f"{self.options.id_prefix}-{index}",
            kind=request.kind,
            stream=request.stream,
            tenant=request.tenant,
            band=request.band,
            target=target,
            scheduled_s=scheduled_s,
            started_s=self.now(),
            planned_prompt_tokens=request.prompt_tokens,
            planned_output_tokens=request.output_tokens,
            body_bytes=len(request.body),
            warmup=warmup,
        )
        exchange = Exchange(request, record)
        if len(self._flights) >= self.options.max_in_flight:
            exchange.fail(
                outcome.CLIENT_LIMIT, f"{len(self._flights)} requests in flight", self.now()
            )
            done(record)
            return
        flight = self._flights[exchange] = _Flight(done)
        self.most_in_flight = max(self.most_in_flight, len(self._flights))
        flight.timer = self._loop.call_later(self.options.timeout_s, self._timed_out, exchange)
        connection = self._take_idle(target)
        if connection is not None:
            self._send(connection, exchange, flight)
        else:
            flight.connecting = self._loop.create_task(self._connect(target, exchange, flight))

    async def drained(self, limit_s: float) -> bool:
        """Wait until nothing is in flight; False when ``limit_s`` passes first."""
        if not self._flights:
            return True
        self._emptied = self._loop.create_future()
        try:
            await asyncio.wait_for(self._emptied, limit_s)
        except asyncio.TimeoutError:
            return False
        finally:
            self._emptied = None
        return True

    def cut_off(self, why: str) -> None:
        """End what is in flight; its records say ``unfinished``."""
        for exchange in list(self._flights):
            self._end(exchange, outcome.UNFINISHED, why)

    # -- for the connections --------------------------------------------------------------

    def exchange_closed(self, exchange: Exchange) -> None:
        """The record of an exchange is complete."""
        flight = self._flights.pop(exchange, None)
        if flight is None:
            return
        if flight.timer is not None:
            flight.timer.cancel()
        flight.done(exchange.record)
        if not self._flights and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def connection_made(self, connection: Connection) -> None:
        """It is open."""
        self.connections_opened += 1
        self._open.add(connection)

    def connection_idle(self, connection: Connection) -> None:
        """It may serve again."""
        self._idle[connection.target].append(connection)

    def connection_lost(self, connection: Connection) -> None:
        """It is gone."""
        self._open.discard(connection)
        idle = self._idle[connection.target]
        if connection in idle:
            idle.remove(connection)
        if self._all_closed is not None and not self._open:
            self._all_closed.set_result(None)

    # -- inside ---------------------------------------------------------------------------

    def _take_idle(self, target: int) -> Connection | None:
        """The connection that was used last; older ones age and are closed."""
        idle = self._idle[target]
        horizon = self.now() - IDLE_LIMIT_S
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since >= horizon:
                return connection
            connection.close()
        return None

    async def _connect(self, target: int, exchange: Exchange, flight: _Flight) -> None:
        place = self.targets[target]
        connection = Connection(self, target, self.now)
        try:
            await self._loop.create_connection(
                lambda: connection,
                place.address,
                place.port,
                ssl=self._tls[target],
                server_hostname=place.host if place.tls else None,
            )
        except OSError as error:
            exchange.fail(outcome.CONNECT, error.strerror or str(error), self.now())
            self.exchange_closed(exchange)
            return
        finally:
            flight.connecting = None
        if exchange.closed or not connection.usable:
            connection.close()
            if not exchange.closed:
                exchange.lost("connection closed at once", self.now())
                self.exchange_closed(exchange)
            return
        self._send(connection, exchange, flight)

    def _send(self, connection: Connection, exchange: Exchange, flight: _Flight) -> None:
        flight.connection = connection
        request = exchange.request
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        head = self._heads[connection.target] % (
            PATHS[request.kind].encode(),
            exchange.record.request_id.encode("latin-1"),
            len(request.body),
            lines.encode("latin-1"),
        )
        connection.send(head, exchange)

    def _timed_out(self, exchange: Exchange) -> None:
        self._end(exchange, outcome.TIMEOUT, f"no end within {self.options.timeout_s:g} s")

    def _end(self, exchange: Exchange, error: str, why: str) -> None:
        flight = self._flights.get(exchange)
        if flight is None:
            return
        if flight.connecting is not None:
            flight.connecting.cancel()
        if flight.connection is not None:
            flight.connection.close()
        exchange.fail(error, why, self.now())
        self.exchange_closed(exchange)

    def _common_head(self, target: Target) -> bytes:
        lines = [
            ("host", target.host_header),
            ("content-type", "application/json"),
            *self.options.headers,
        ]
        if self.options.api_key is not None:
            lines.append(("authorization", f"Bearer {self.options.api_key}"))
        fixed = "".join(f"{name}: {value}\r\n" for name, value in lines).replace("%", "%%")
        path = target.path.replace("%", "%%")
        return (
            f"POST {path}%b HTTP/1.1\r\n{fixed}x-request-id: %b\r\ncontent-length: %d\r\n%b\r\n"
        ).encode("latin-1")
