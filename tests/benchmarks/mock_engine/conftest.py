"""A mock server in virtual time, and a client that speaks to it byte by byte."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson

from sage_bench.mock_engine.api import Limits
from sage_bench.mock_engine.engine import MockSpec
from sage_bench.mock_engine.server import MockServer
from sage_bench.simulation.embedding_engine import EmbeddingEngineSpec
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.step_profile import EmbeddingProfile, StepProfile

# 10 ms per step and 1 ms per prompt token; constants that are easy to add up.
STEPS = StepProfile(c0=0.010, a=0.001, b=0.0, g=0.0, kv_tokens=10_000)
EMBEDDING = EmbeddingProfile(s0=0.004, alpha=0.001)


def mock_spec(**changes: Any) -> MockSpec:
    """A small engine; ``llm``: changes of its scheduler's settings."""
    llm = LlmEngineSpec(STEPS, 1024, 16, block_tokens=4)
    llm = replace(llm, **changes.pop("llm", {}))
    priorities = llm.scheduling == "priority"
    limits = Limits(("mock", "other"), max_model_len=2000, priorities=priorities)
    return MockSpec(llm, EmbeddingEngineSpec(EMBEDDING), limits, **changes)


def mock_server(spec: MockSpec | None = None, count: int = 1, **options: Any) -> MockServer:
    """In the running loop, by its clock."""
    clock = asyncio.get_running_loop().time
    return MockServer(spec or mock_spec(), count, clock=clock, **options)


class Answer:
    """What came back, and when (seconds since the request)."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.chunks: list[tuple[float, bytes]] = []
        """Of a chunked answer."""
        self.complete = False
        """HTTP says so."""
        self.ended_s = 0.0

    def json(self) -> Any:
        return orjson.loads(self.body)

    def events(self) -> list[tuple[float, Any]]:
        """Events of a stream with their times; ``[DONE]`` as None."""
        found: list[tuple[float, Any]] = []
        for at, chunk in self.chunks:
            for event in chunk.decode().split("\n\n")[:-1]:
                payload = event.removeprefix("data: ")
                found.append((at, None if payload == "[DONE]" else orjson.loads(payload)))
        return found

    def token_times(self) -> list[float]:
        """When events with text came."""
        times = []
        for at, event in self.events():
            for choice in (event or {}).get("choices", ()):
                if choice.get("text") or choice.get("delta", {}).get("content"):
                    times.append(at)
        return times


class Caller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Caller:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(self, method: str, path: str, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: test\r\n{lines}content-length: {len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    async def receive(self) -> Answer:
        """The answer so far as it comes before the connection ends."""
        answer, began = Answer(), asyncio.get_running_loop().time()
        try:
            await self._read(answer, began)
            answer.complete = True
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        answer.ended_s = asyncio.get_running_loop().time() - began
        return answer

    async def call(self, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
        await self.send(method, path, body, **headers)
        return await self.receive()

    async def _read(self, answer: Answer, began: float) -> None:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answer.status = int(head[0].split(" ")[1])
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            answer.headers[name] = value
        if "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
            return
        while size := int((await self.reader.readline()).strip() or b"x", 16):
            chunk = await self.reader.readexactly(size)
            answer.chunks.append((asyncio.get_running_loop().time() - began, chunk))
            answer.body += chunk
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)


async def call(port: int, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
    """One request on a connection of its own."""
    async with Caller(port) as caller:
        return await caller.call(method, path, body, **headers)


def chat(prompt_tokens: int = 5, output_tokens: int = 4, **more: Any) -> dict[str, Any]:
    """A chat that streams."""
    words = " ".join(f"w{number}" for number in range(prompt_tokens))
    return {
        "model": "mock",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "stream": True,
        **more,
    }
