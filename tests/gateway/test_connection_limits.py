"""Connections over a limit get an answer, and take nothing from those within it."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import orjson
import pytest

from sage_gateway.config import ServerLimits
from sage_gateway.connection_limits import ConnectionLimits, most_connections


def test_connections_are_counted_by_address() -> None:
    limits = ConnectionLimits(3, 2)
    assert [limits.enter(address) for address in ("a", "a")] == [None, None]
    assert limits.enter("a") == "Your address has its 2 connections already."
    assert limits.enter("b") == "This gateway has its 3 connections already."
    for address in ("a", "a", "a", "b"):
        limits.leave(address)
    assert limits.open == 0
    assert limits.enter("b") is None
    with pytest.raises(KeyError):
        limits.leave("a")


def test_without_a_number_descriptors_are_the_limit() -> None:
    assert most_connections() == max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64) // 2)


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (ServerLimits(max_connections=3), "This gateway has its 3"),
        (ServerLimits(max_connections_per_ip=3), "Your address has its 3"),
    ],
)
async def test_one_connection_too_many(lab: Any, limits: ServerLimits, word: str) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()), server=limits)
    body = orjson.dumps(lab.CHAT)
    kept = [await gateway.connect() for _ in range(3)]
    reader, writer = await gateway.post_raw(body)
    refused = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in refused
    error = orjson.loads(refused.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "too_many_connections"
    assert error["message"].startswith(word)
    for reader, writer in kept:
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
    kept[0][1].close()
    await kept[0][1].wait_closed()
    await lab.until(lambda: len(gateway.server.server_state.connections) == 2)
    assert (await gateway.chat()).status_code == 200
    for _, writer in kept[1:]:
        writer.close()
