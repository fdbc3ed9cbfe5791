"""Registration with a gateway: a small real HTTP server stands in for the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.keys import ensure_master_key
from sage_prefect.platform.gateway_registrar import GatewayRegistrar
from sage_prefect.platform.service import EngineRegistration, ServedModel

ENGINE = EngineRegistration(
    base_url="http://127.0.0.1:8001/v1",
    models=(ServedModel(name="m", mode="chat"),),
    driver="llamacpp",
    max_concurrency=4,
)


@dataclass
class Gateway:
    """The management contract, kept in a dict."""

    engines: dict[str, dict[str, object]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    status: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path = head.split()[:2]
        length = [line for line in head.splitlines() if line.lower().startswith("content-length")]
        body = await reader.readexactly(int(length[0].split(":")[1])) if length else b""
        self.seen.append(f"{method} {path}")
        authorized = f"Authorization: Bearer {ensure_master_key()}" in head
        status, answer = self.answer(method, path, body) if authorized else (401, {})
        content = orjson.dumps(answer)
        start = f"HTTP/1.1 {self.status or status} X\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(start.encode() + content)
        writer.close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        if method == "POST":
            engine = orjson.loads(body)
            status = 200 if engine["name"] in self.engines else 201
            self.engines[engine["name"]] = engine
            return status, engine
        if method == "DELETE":
            return (200, {}) if self.engines.pop(path.rsplit("/", 1)[1], None) else (404, {})
        return 200, {"engines": list(self.engines.values())}


@asynccontextmanager
async def running() -> AsyncIterator[Gateway]:
    ensure_master_key()
    gateway = Gateway()
    listening = await asyncio.start_server(gateway.serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        endpoints.publish("gateway", f"http://127.0.0.1:{port}")
        yield gateway


@pytest.mark.usefixtures("home")
async def test_register_list_remove() -> None:
    async with running() as gateway:
        registrar = GatewayRegistrar()
        await registrar.register("llm", ENGINE)
        assert gateway.engines["llm"] == {
            "name": "llm",
            "base_url": "http://127.0.0.1:8001/v1",
            "models": [{"name": "m", "mode": "chat"}],
            "driver": "llamacpp",
            "device": "cpu",
            "max_concurrency": 4,
            "api_key": None,
        }
        await registrar.register("llm", ENGINE)
        on_gpu = ENGINE.model_copy(update={"accelerator": "host/gpu0"})
        await registrar.register("gpu", on_gpu)
        assert gateway.engines["gpu"]["accelerator"] == "host/gpu0"
        await registrar.deregister("gpu")
        assert await registrar.known() == {"llm": ENGINE.base_url}
        await registrar.deregister("llm")
        await registrar.deregister("llm")
        assert await registrar.known() == {}


@pytest.mark.usefixtures("home")
async def test_ensure_registers_what_is_missing_or_moved() -> None:
    async with running() as gateway:
        registrar = GatewayRegistrar()
        assert await registrar.ensure({"llm": ENGINE}) == {"llm": True}
        gateway.seen.clear()
        assert await registrar.ensure({"llm": ENGINE}) == {"llm": True}
        assert gateway.seen == ["GET /v1/management/engines"]
        moved = ENGINE.model_copy(update={"base_url": "http://127.0.0.1:8002/v1"})
        assert await registrar.ensure({"llm": moved}) == {"llm": True}
        assert gateway.engines["llm"]["base_url"] == moved.base_url


@pytest.mark.usefixtures("home")
async def test_refusals_name_the_answer() -> None:
    async with running() as gateway:
        registrar = GatewayRegistrar()
        gateway.status = 401
        for call in (registrar.register("llm", ENGINE), registrar.deregister("llm")):
            with pytest.raises(ServiceError, match="status 401") as caught:
                await call
            assert "master key" in (caught.value.hint or "")
        assert await registrar.ensure({"llm": ENGINE}) == {"llm": False}
        assert not await registrar.try_register("llm", ENGINE)


@pytest.mark.usefixtures("home")
async def test_no_gateway(unused_port: int) -> None:
    registrar = GatewayRegistrar()
    assert registrar.gateway is None
    assert await registrar.ensure({"llm": ENGINE}) == {"llm": False}
    with pytest.raises(ServiceError, match="no gateway runs"):
        await registrar.known()
    endpoints.publish("gateway", f"http://127.0.0.1:{unused_port}")
    with pytest.raises(ServiceError, match="does not answer"):
        await registrar.known()
