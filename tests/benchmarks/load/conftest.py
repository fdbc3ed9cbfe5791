"""A server that sends what a test tells it to, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sage_bench.load.target import Target

Script = Callable[["Call"], Awaitable[None]]


class Call:
    """One request as the server sees it."""

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head, self.body = head, body
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: bytes, *headers: bytes) -> None:
        lines = b"".join(b"%b\r\n" % header for header in headers)
        await self.send(
            b"HTTP/1.1 %d Status\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, lines, len(body), body)
        )

    async def begin_stream(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def client_gone(self) -> None:
        """Returns when the client has closed its side."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            return


class ScriptedServer:
    """Runs ``script`` for each request; ``calls`` are those that came, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.connections = 0
        self.script: Script | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                call = Call(head, await reader.readexactly(length), reader, writer)
                self.calls.append(call)
                assert self.script is not None
                await self.script(call)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def plays(self, script: Script) -> None:
        self.script = script


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    yield made
    listening.close()
    # Every client is closed by now, which ends each connection's task.
    if serving := [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]:
        await asyncio.wait(serving, timeout=30)


@pytest.fixture
def target(server: ScriptedServer) -> Target:
    return Target.parse(f"http://127.0.0.1:{server.port}")  # type: ignore[attr-defined]
