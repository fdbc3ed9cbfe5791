"""Probes against real sockets, files and functions."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sage_prefect.platform.http_request import RequestError, request
from sage_prefect.platform.listeners import foreign_listener, listening_inodes
from sage_prefect.platform.probes import ask
from sage_prefect.platform.service import Probe


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    """A server that gives every connection the same bytes; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nrunning: 0.0\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


async def test_http_status_and_body() -> None:
    async with server(OK) as port:
        url = f"http://127.0.0.1:{port}/metrics?x=1"

        async def answer(**fields: object) -> str | None:
            return await ask(Probe.model_validate({"kind": "http", "target": url, **fields}))

        assert await answer() is None
        assert await answer(matches=r"running: 0(\.0)?") is None
        assert "does not match" in str(await answer(matches="running: 1"))
        assert "still matches" in str(await answer(absent="running"))
        assert "status 200" in str(await answer(statuses=(204,)))


async def test_http_request_reads_chunks() -> None:
    async with server(CHUNKED) as port:
        answer = await request("GET", f"http://127.0.0.1:{port}")
        assert (answer.status, answer.text) == (200, "hello")


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", OK[:30], b"HTTP/1.1 200 OK\r\n"])
async def test_broken_answers_are_request_errors_or_no(answer: bytes) -> None:
    async with server(answer) as port:
        try:
            got = await request("GET", f"http://127.0.0.1:{port}", timeout_s=2.0)
        except RequestError:
            return
        assert got.body == b""


async def test_nobody_there(unused_port: int) -> None:
    assert "127.0.0.1" in str(
        await ask(Probe(kind="http", target=f"http://127.0.0.1:{unused_port}/"))
    )
    assert await ask(Probe(kind="tcp", target=f"127.0.0.1:{unused_port}")) is not None


async def test_silence_has_a_limit() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        probe = Probe(kind="http", target=f"http://127.0.0.1:{port}/", timeout_s=0.05)
        assert "no answer within 0.05 s" in str(await ask(probe))
        assert await ask(Probe(kind="tcp", target=f"127.0.0.1:{port}")) is None


async def test_unix(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    probe = Probe(kind="unix", target=str(path))
    assert "No such file" in str(await ask(probe))

    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_unix_server(serve, path):
        assert await ask(probe) is None
        await served.wait()


async def test_file(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    probe = Probe(kind="file", target=str(file))
    assert "does not exist" in str(await ask(probe))
    file.touch()
    assert await ask(probe, started=time.time()) is None
    assert "earlier run" in str(await ask(probe, started=time.time() + 60))


async def test_callable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "def well():\n    return None\n"
        "def not_yet():\n    return 'two workers are missing'\n"
        "def broken():\n    raise ValueError('no')\n"
    )
    (tmp_path / "probe_functions.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    async def answer(name: str) -> str | None:
        return await ask(Probe(kind="callable", target=f"probe_functions:{name}"))

    assert await answer("well") is None
    assert "two workers are missing" in str(await answer("not_yet"))
    assert "ValueError: no" in str(await answer("broken"))
    assert "AttributeError" in str(await answer("ghost"))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
async def test_listeners_are_told_apart(host: str, eventually: Callable[..., None]) -> None:
    listening = await asyncio.start_server(lambda _r, w: w.close(), host, 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        asked = "::1" if host == "::1" else "127.0.0.1"
        assert listening_inodes(port, asked)
        assert not foreign_listener(port, asked, lambda: [os.getpid()])
        assert foreign_listener(port, asked, lambda: [os.getppid()])
    eventually(lambda: not listening_inodes(port, asked))
    assert not foreign_listener(port, asked, lambda: [])


async def test_own_listener_that_ends_between_two_looks_is_not_foreign() -> None:
    listening = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]

    def ended() -> list[int]:
        listening.close()
        return []

    assert not foreign_listener(port, "127.0.0.1", ended)
