"""An event loop in virtual time, with a network in memory: servers and clients that are written
for the wall clock run in no time, and to the same microsecond each time."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Selector(selectors.DefaultSelector):
    """Never waits: what the loop would sleep is added to its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for somebody else: a deadlock"
            self.now += timeout
        return ready


class Wire(asyncio.Transport):
    """One end of a connection in memory; bytes arrive in the loop's next turn, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.loop, self.protocol = loop, protocol
        self.peer: Wire | None = None
        self.closing = False
        self.lost = False
        self.paused = False
        self.held: list[Callable[[], None]] = []

    def write(self, data: Any) -> None:
        assert self.peer is not None
        if not self.closing and data:
            self.loop.call_soon(self.peer.deliver, bytes(data))

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def deliver(self, data: bytes) -> None:
        self.when_reading(lambda: None if self.lost else self.protocol.data_received(data))

    def when_reading(self, call: Callable[[], None]) -> None:
        if self.paused:
            self.held.append(call)
        else:
            call()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        while self.held and not self.paused:
            self.held.pop(0)()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.end(None)

    def abort(self) -> None:
        self.end(ConnectionResetError("reset by peer"))

    def end(self, told: Exception | None) -> None:
        if self.closing:
            return
        self.closing = True
        self.loop.call_soon(self.lose, None)
        peer = self.peer
        assert peer is not None
        self.loop.call_soon(lambda: peer.when_reading(lambda: peer.lose(told)))

    def lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(error)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Listening:
    """What ``create_server`` gives."""

    def __init__(self, loop: VirtualLoop, port: int) -> None:
        self.loop, self.port = loop, port
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def close(self) -> None:
        self.loop.factories.pop(self.port, None)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, and jumps to the next timer otherwise."""

    def __init__(self) -> None:
        self.selector = Selector()
        self.factories: dict[int, Callable[[], Any]] = {}
        self.free_ports = itertools.count(50_000)
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now

    async def create_server(  # type: ignore[override]
        self, factory: Callable[[], Any], host: str, port: int, **_: Any
    ) -> Any:
        port = port or next(self.free_ports)
        if port in self.factories:
            raise OSError(98, "Address already in use")
        self.factories[port] = factory
        return Listening(self, port)

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], host: str, port: int, **_: Any
    ) -> Any:
        if port not in self.factories:
            raise ConnectionRefusedError(111, "Connection refused")
        client, server = factory(), self.factories[port]()
        ends = Wire(self, client), Wire(self, server)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        server.connection_made(ends[1])
        client.connection_made(ends[0])
        return ends[0], client


@pytest.fixture
def virtually() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Runs a coroutine in virtual time."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        loop = VirtualLoop()
        try:
            return loop.run_until_complete(asyncio.wait_for(main, 1e6))
        finally:
            left = asyncio.all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            assert not left, left

    return run
