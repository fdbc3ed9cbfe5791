"""N mock engines on N ports of the loopback, and one control port, in one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sage_bench.mock_engine.connection import Connection, Service
from sage_bench.mock_engine.control import ControlService
from sage_bench.mock_engine.engine import MockEngine, MockSpec
from sage_bench.mock_engine.faults import Fault
from sage_bench.mock_engine.outages import AnyFault, FaultOrder
from sage_bench.mock_engine.virtual_time import Clock, EngineTime
from sage_prefect.common.errors import BenchmarkError

HOST = "127.0.0.1"
_BACKLOG = 4096


class MockServer:
    """Starts with :meth:`start` or as an async context manager, ends with :meth:`close`.

    Args:
        spec: of every engine.
        count: engines.
        port: of the first engine, the others follow; 0: free ports.
        control_port: 0: a free one.
        time_scale: engine seconds per second.
        clock: monotonic seconds.

    Raises:
        BenchmarkError: no engines, or a time scale that makes no sense.
    """

    def __init__(
        self,
        spec: MockSpec,
        count: int = 1,
        *,
        port: int = 0,
        control_port: int = 0,
        time_scale: float = 1.0,
        clock: Clock = time.monotonic,
    ) -> None:
        if count < 1:
            raise BenchmarkError(f"{count} mock engines; at least 1.")
        self._loop = asyncio.get_running_loop()
        self.time = EngineTime(time_scale, clock)
        self.engines = [MockEngine(f"mock-{number}", spec, self.time) for number in range(count)]
        self.ports = [port + number if port else 0 for number in range(count)]
        self.control_port = control_port
        self._listening: list[asyncio.Server | None] = [None] * count
        self._control = ControlService(self.engines, self.url, self.order)
        self._control_server: asyncio.Server | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._revivals: set[asyncio.Task[None]] = set()
        self.failure: asyncio.Future[None] = self._loop.create_future()
        """Gets an exception when an engine cannot come back after a crash."""

    async def __aenter__(self) -> MockServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen.

        Raises:
            BenchmarkError: a port cannot be had.
        """
        try:
            for number, engine in enumerate(self.engines):
                server = await self._listen(engine, self.ports[number])
                self._listening[number] = server
                self.ports[number] = server.sockets[0].getsockname()[1]
            self._control_server = await self._listen(self._control, self.control_port)
            self.control_port = self._control_server.sockets[0].getsockname()[1]
        except BaseException:
            await self.close()
            raise

    def url(self, number: int) -> str:
        """Base URL of an engine."""
        return f"http://{HOST}:{self.ports[number]}/v1"

    def describe(self) -> dict[str, Any]:
        """What clients need to know."""
        return {
            "engines": [
                {"name": engine.name, "url": self.url(number), "port": self.ports[number]}
                for number, engine in enumerate(self.engines)
            ],
            "control": f"http://{HOST}:{self.control_port}",
            "time_scale": self.time.scale,
        }

    def order(self, order: FaultOrder) -> None:
        """Let a fault happen, now or at its time.

        Raises:
            BenchmarkError: there is no such engine.
        """
        count = len(self.engines)
        if order.engine is not None and order.engine >= count:
            raise BenchmarkError(f"no engine {order.engine}.", hint=f"There are 0 to {count - 1}.")
        numbers = range(count) if order.engine is None else (order.engine,)

        def strike() -> None:
            for number in numbers:
                self._strike(number, order.fault)

        if order.at_s:
            self._later(order.at_s, strike)
        else:
            strike()

    async def close(self) -> None:
        """End everything."""
        for timer in self._timers:
            timer.cancel()
        for revival in list(self._revivals):
            revival.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        for server in (*self._listening, self._control_server):
            if server is not None:
                server.close()
        for engine in self.engines:
            await engine.close()
        for connection in list(self._control.connections):
            connection.close()
        self.failure.cancel()

    def _strike(self, number: int, fault: AnyFault) -> None:
        engine = self.engines[number]
        if isinstance(fault, Fault):
            engine.faults.add(fault)
            return
        engine.suffer(fault, self._later)
        server = self._listening[number]
        if fault.kind == "crash" and server is not None:
            self._listening[number] = None
            server.close()
            self._later(fault.seconds, lambda: self._begin_revival(number))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        now = self.time.now()
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self.time.call_at(now + seconds, call))

    def _begin_revival(self, number: int) -> None:
        revival = self._loop.create_task(self._revive(number))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)

    async def _revive(self, number: int) -> None:
        try:
            self._listening[number] = await self._listen(self.engines[number], self.ports[number])
        except BenchmarkError as error:
            if not self.failure.done():
                self.failure.set_exception(error)

    async def _listen(self, service: Service, port: int) -> asyncio.Server:
        try:
            return await self._loop.create_server(
                lambda: Connection(service), HOST, port, backlog=_BACKLOG
            )
        except OSError as error:
            raise BenchmarkError(
                f"port {port} of {HOST} cannot be had: {error.strerror or error}.",
                hint="Choose another, or 0 for a free one.",
            ) from error
