"""A server that does what a test says, and both clients behind one face."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from sage_prefect.inference.client import AsyncInferenceClient, UnifiedInferenceClient


@dataclass(frozen=True)
class Recorded:
    """A request as it came."""

    path: str
    headers: Message
    body: bytes
    client_port: int

    def json(self) -> Any:
        return orjson.loads(self.body)


class Exchange(BaseHTTPRequestHandler):
    """One request, and means to answer it well or badly."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.server.lock:
            self.server.requests.append(
                Recorded(self.path, self.headers, self.body, self.client_address[1])
            )
            self.number = len(self.server.requests)
        try:
            self.server.script(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.client_gone.set()
            self.close_connection = True

    do_GET = do_POST  # noqa: N815 - the name that http.server looks for

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def json(self) -> Any:
        return orjson.loads(self.body)

    def answer(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        self.connection.close()


class ScriptedServer(ThreadingHTTPServer):
    """Runs ``script`` on each request; ``release`` ends scripts that wait."""

    def __init__(self, script: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.script = script
        self.requests: list[Recorded] = []
        self.lock = threading.Lock()
        self.client_gone = threading.Event()
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle is part of the tests."""


Serve = Callable[[Callable[[Exchange], None]], ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[tuple[ScriptedServer, threading.Thread]] = []

    def start(script: Callable[[Exchange], None]) -> ScriptedServer:
        server = ScriptedServer(script)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.release.set()
        server.shutdown()
        thread.join()
        server.daemon_threads = True
        server.server_close()


class AsyncFace:
    """AsyncInferenceClient with the sync client's face, so that one test covers both."""

    def __init__(self, client: AsyncInferenceClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return self._loop.run_until_complete(method(*arguments, **options))

        return call

    @property
    def config(self) -> Any:
        return self._client.config

    def chat_stream(self, *arguments: Any, **options: Any) -> StreamFace:
        return StreamFace(self._loop, self._client.chat_stream(*arguments, **options))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())

    def end(self) -> None:
        self.close()
        self._loop.close()


class StreamFace:
    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Any) -> None:
        self._loop, self._stream = loop, stream

    def __iter__(self) -> StreamFace:
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def result(self) -> Any:
        return self._loop.run_until_complete(self._stream.result())

    def partial(self) -> Any:
        return self._stream.partial()

    def close(self) -> None:
        self._loop.run_until_complete(self._stream.close())


Connect = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client, sync or async, and closes it at the end."""
    clients: list[Any] = []

    def make(url: str | None = None, **options: Any) -> Any:
        options.setdefault("retries", 0)
        client: Any
        if request.param == "sync":
            client = UnifiedInferenceClient.create(url, **options)
        else:
            client = AsyncFace(AsyncInferenceClient.create(url, **options))
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.end() if isinstance(client, AsyncFace) else client.close()
