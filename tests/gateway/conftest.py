"""Test peers: engines that misbehave on command, and a gateway on a real socket in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import orjson
import pytest
import uvloop

from sage_gateway.app import GatewayApp
from sage_gateway.auth import KeyRing
from sage_gateway.config import GatewayConfig, HealthConfig
from sage_gateway.config_tenants import KeyStoreConfig
from sage_gateway.engines import EngineConfig, ServedModel
from sage_gateway.gateway import Gateway
from sage_gateway.server import GatewayServer, bind, make_server
from sage_prefect.control_plane.events import Action, Event
from sage_prefect.control_plane.manager import ControlPlaneManager

# libuv's first loop opens a pipe for signals that stays open for the process's life: open it
# before the leak check of the first test looks.
uvloop.new_event_loop().close()

KEY = "sk-test-master"
HEADERS = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class PeerRequest:
    """What an engine was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, status: int = 200, body: bytes = b"", content_type: str = "application/json"
    ) -> None:
        await self.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def start_events(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_events(self) -> None:
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Drop the connection without a word."""
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        """Return when the gateway closes this connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Behaviour = Callable[[PeerRequest], Awaitable[None]]


def delta(text: str) -> bytes:
    """One content event of a chat stream."""
    content = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + orjson.dumps(content) + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
)
DONE = b"data: [DONE]\n\n"


async def chat(request: PeerRequest) -> None:
    """A well-behaved engine."""
    if request.method == "GET":
        await request.answer(200, b'{"status":"ok"}')
        return
    if request.path.endswith("/embeddings"):
        await request.answer(
            200,
            b'{"object":"list","data":[{"embedding":[0.1,0.2],"index":0}],'
            b'"usage":{"prompt_tokens":3,"total_tokens":3}}',
        )
        return
    content = request.json
    if content.get("stream"):
        await request.start_events()
        for word in ("Hel", "lo"):
            await request.chunk(delta(word))
        await request.chunk(FINISH)
        if (content.get("stream_options") or {}).get("include_usage"):
            await request.chunk(USAGE)
        await request.chunk(DONE)
        await request.end_events()
        return
    await request.answer(
        200,
        b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},'
        b'"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}',
    )


@dataclass
class Peer:
    """An HTTP server on port 0 whose behaviour a test sets."""

    behaviour: Behaviour = chat
    requests: list[PeerRequest] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[PeerRequest]:
        return [request for request in self.requests if request.method == "POST"]

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._on_connection, "127.0.0.1", self.port, limit=1 << 26
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")[:-2]
                method, path, _ = first.split(" ")
                headers = {}
                for line in lines:
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = PeerRequest(method, path, headers, body, reader, writer)
                self.requests.append(request)
                await self.behaviour(request)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def engine(peer: Peer | str, name: str = "e1", **fields: Any) -> EngineConfig:
    """An engine of the configuration that points to a peer."""
    url = peer if isinstance(peer, str) else peer.url
    fields.setdefault("models", (ServedModel("m"),))
    return EngineConfig(name, url, **fields)


@dataclass
class Running:
    """A gateway that listens."""

    gateway: Gateway
    app: GatewayApp
    port: int
    client: httpx.AsyncClient
    server: GatewayServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def chat(self, **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        return await self.client.post(
            "/v1/chat/completions", json={**CHAT, **fields}, headers=headers
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def post_raw(
        self, body: bytes, path: str = "/v1/chat/completions"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request by hand; the answer is read by hand, too."""
        reader, writer = await self.connect()
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        return reader, writer

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], Any], what: str = "condition") -> None:
    """Poll until ``condition()`` holds; fail after 10 s."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come true"
        await asyncio.sleep(0.002)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """The gateway's own event loop; it differs from asyncio's where it matters (clock, writes)."""
    return {"uvloop": uvloop.new_event_loop}


class OverheardManager:
    """A control plane whose events a test hears first: compiled, its methods cannot be replaced."""

    def __init__(self, manager: ControlPlaneManager, hear: Callable[[Event, float], None]) -> None:
        self._manager = manager
        self._hear = hear

    def handle(self, event: Event, now: float) -> list[Action]:
        self._hear(event, now)
        return self._manager.handle(event, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


class Lab:
    """Everything that a test starts; it ends with the test. Test modules cannot import each other
    (importlib mode), so the names that they need hang here."""

    KEY, HEADERS, CHAT = KEY, HEADERS, CHAT
    FINISH, USAGE, DONE = FINISH, USAGE, DONE
    PeerRequest = PeerRequest
    embedding_model = ServedModel("m", "embedding")
    delta = staticmethod(delta)
    chat = staticmethod(chat)
    engine = staticmethod(engine)
    until = staticmethod(until)

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    @staticmethod
    def overhear(gateway: Running) -> list[Event]:
        """A list that gets all events which the control plane hears from now on."""
        heard: list[Event] = []
        scheduler = gateway.gateway.scheduler
        overheard = OverheardManager(scheduler.manager, lambda event, now: heard.append(event))
        scheduler.manager = overheard  # type: ignore[assignment]
        return heard

    async def peer(self, behaviour: Behaviour = chat) -> Peer:
        """Start an engine."""
        peer = Peer(behaviour)
        await peer.start()
        self._stack.push_async_callback(peer.stop)
        return peer

    async def gateway(
        self,
        *engines: EngineConfig,
        keys: KeyRing | None = None,
        key_store: KeyStoreConfig | None = None,
        on_loopback: bool = True,
        host: str = "127.0.0.1",
        **config: Any,
    ) -> Running:
        """Start a gateway on port 0."""
        config.setdefault("health", HealthConfig(probe_interval_s=0.02, probe_timeout_s=1.0))
        config.setdefault("keys", key_store or KeyStoreConfig())
        settings = replace(GatewayConfig(engines=engines), **config)
        gateway = Gateway(settings, keys or KeyRing(KEY))
        app = GatewayApp(gateway, on_loopback=on_loopback)
        listener = bind(host, 0, settings.timeouts.unreachable_s)
        server = make_server(app, settings)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        port = listener.getsockname()[1]
        client = httpx.AsyncClient(
            base_url=f"http://{host}:{port}", headers=HEADERS, timeout=20, trust_env=False
        )

        async def stop() -> None:
            await client.aclose()
            for listening in server.servers:
                listening.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            if server.server_state.tasks:
                await asyncio.wait(list(server.server_state.tasks), timeout=5)
            await gateway.close()
            await until(lambda: not any(e.pool.open_connections for e in gateway.engines))

        self._stack.push_async_callback(stop)
        return Running(gateway, app, port, client, server)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    started = Lab()
    yield started
    await started.close()
