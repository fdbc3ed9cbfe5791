"""When the client goes, its request goes: out of the queue, out of the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest


@pytest.mark.parametrize("stream", [False, True])
async def test_a_running_request_ends_at_the_engine(lab: Any, stream: bool) -> None:
    gone = asyncio.Event()

    async def long(request: Any) -> None:
        if stream:
            await request.start_events()
            await request.chunk(lab.delta("Once"))
        await request.until_gone()
        gone.set()

    peer = await lab.peer(long)
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.post_raw(orjson.dumps({**lab.CHAT, "stream": stream}))
    await lab.until(lambda: peer.posts)
    if stream:
        await reader.readuntil(b"Once")
    writer.close()
    await asyncio.wait_for(gone.wait(), 10)
    await lab.until(lambda: gateway.gateway.manager.running == 0)
    assert (
        gateway.metric("sage_gateway_requests_total", route="chat", model="m", status="cancelled")
        == 1
    )
    assert not gateway.gateway.health.is_suspect("e1")


async def test_a_queued_request_leaves_the_queue(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(lab.engine(peer, max_concurrency=1))
    first = asyncio.ensure_future(gateway.chat())
    await lab.until(lambda: peer.posts)
    _, writer = await gateway.post_raw(orjson.dumps(lab.CHAT))
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    writer.close()
    await lab.until(lambda: gateway.gateway.manager.queued == 0)
    gate.set()
    assert (await first).status_code == 200
    assert len(peer.posts) == 1


async def test_a_client_that_leaves_while_it_sends_its_body(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    _, writer = await gateway.connect()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
        + lab.KEY.encode()
        + b"\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await lab.until(
        lambda: gateway.metric(
            "sage_gateway_requests_total", route="chat", model="unknown", status="cancelled"
        )
    )
    assert not peer.posts


async def test_a_client_that_takes_nothing_is_cut_off(lab: Any) -> None:
    from sage_gateway.config import ServerLimits

    gone = asyncio.Event()

    async def floods(request: Any) -> None:
        await request.start_events()
        try:
            while True:
                await request.chunk(lab.delta("x" * 10_000))
        except ConnectionError:
            gone.set()
            raise

    peer = await lab.peer(floods)
    gateway = await lab.gateway(lab.engine(peer), server=ServerLimits(client_stall_s=0.1))
    _, writer = await gateway.post_raw(orjson.dumps({**lab.CHAT, "stream": True}))
    await asyncio.wait_for(gone.wait(), 15)
    await lab.until(lambda: gateway.gateway.manager.running == 0)
    writer.transport.abort()
