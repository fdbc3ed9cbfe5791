"""The lean client by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_gateway.upstream import HIGH_WATER, Timeouts, UpstreamConnection, UpstreamError
from sage_gateway.upstream_pool import UpstreamPool
from sage_prefect.control_plane.events import FailureCause

GET = [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"]


def pool_to(peer: Any, **timeouts: float) -> UpstreamPool:
    return UpstreamPool("127.0.0.1", peer.port, None, Timeouts(**timeouts))


async def closed(pool: UpstreamPool, lab: Any) -> None:
    pool.close()
    await lab.until(lambda: pool.open_connections == 0)


async def test_an_answer_in_single_bytes(lab: Any) -> None:
    async def drip(request: Any) -> None:
        text = (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        for i in range(len(text)):
            await request.send(text[i : i + 1])
            await asyncio.sleep(0)

    peer = await lab.peer(drip)
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    assert await exchange.read_all(100) == (b"abcde", True)
    await closed(pool, lab)


async def test_read_all_stops_at_its_limit(lab: Any) -> None:
    async def big(request: Any) -> None:
        await request.answer(200, b"x" * 100_000)

    peer = await lab.peer(big)
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    first, ended = await exchange.read_all(10)
    assert len(first) > 10
    while not ended and (piece := await exchange.read()):
        first += piece
    assert first == b"x" * 100_000
    await closed(pool, lab)


async def test_a_reader_that_waits_slows_the_engine(lab: Any) -> None:
    sent = 0

    async def endless(request: Any) -> None:
        nonlocal sent
        await request.start_events()
        while True:
            await request.chunk(b"x" * 65536)
            sent += 65536

    peer = await lab.peer(endless)
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    await lab.until(lambda: exchange._paused)
    before = sent
    for _ in range(50):
        await asyncio.sleep(0.001)
    # Socket buffers fill up, then the engine stands still: what we hold is bounded.
    assert exchange._buffered <= HIGH_WATER + 512 * 1024
    got = len(await exchange.read())
    assert got > HIGH_WATER
    await lab.until(lambda: sent > before)
    exchange.abort(FailureCause.INTERNAL, "enough")
    await closed(pool, lab)


async def test_content_length_that_is_too_long(lab: Any) -> None:
    async def short(request: Any) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        request.writer.close()

    peer = await lab.peer(short)
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    with pytest.raises(UpstreamError, match="in the middle of its answer") as caught:
        await exchange.read_all(100)
    assert caught.value.cause is FailureCause.RESET
    assert caught.value.answered
    await closed(pool, lab)


async def test_an_answer_until_the_connection_ends(lab: Any) -> None:
    async def old(request: Any) -> None:
        await request.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
        request.writer.close()

    peer = await lab.peer(old)
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    assert await exchange.read_all(100) == (b"abc", True)
    await closed(pool, lab)


async def test_connection_close_is_honoured(lab: Any) -> None:
    async def once(request: Any) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")

    peer = await lab.peer(once)
    pool = pool_to(peer)
    for _ in range(3):
        exchange, used_before = await pool.request(GET)
        await exchange.head()
        await exchange.read_all(10)
        assert not used_before
    assert peer.connections == 3
    await closed(pool, lab)


async def test_nobody_accepts(lab: Any) -> None:
    peer = await lab.peer()
    pool = pool_to(peer)
    await peer.stop()
    with pytest.raises(UpstreamError, match="cannot be reached") as caught:
        await pool.request(GET)
    assert caught.value.cause is FailureCause.CONNECT
    assert not caught.value.answered
    await closed(pool, lab)


async def test_a_server_that_accepts_no_tls(lab: Any) -> None:
    import ssl

    peer = await lab.peer()
    context = ssl.create_default_context()
    pool = UpstreamPool("127.0.0.1", peer.port, context, Timeouts(connect_s=0.2))
    with pytest.raises(UpstreamError) as caught:
        await pool.request(GET)
    assert caught.value.cause is FailureCause.CONNECT
    await closed(pool, lab)


async def test_idle_connections_are_dropped(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_gateway.upstream_pool.IDLE_LIMIT_S", 0.02)
    peer = await lab.peer()
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    await exchange.read_all(100)
    assert pool.open_connections == 1
    await lab.until(lambda: pool.open_connections == 0)
    await closed(pool, lab)


async def test_the_engine_closes_an_idle_connection(lab: Any) -> None:
    peer = await lab.peer()
    pool = pool_to(peer)
    exchange, _ = await pool.request(GET)
    await exchange.head()
    await exchange.read_all(100)
    await peer.stop()
    await lab.until(lambda: pool.open_connections == 0)
    await closed(pool, lab)


class _Transport:
    """Says whether the connection still reads."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...

    def write(self, data: bytes) -> None:
        pass

    def writelines(self, parts: list[bytes]) -> None: ...


async def test_a_big_answer_that_arrives_before_it_is_read_is_read_to_its_end():
    """Reading pauses above HIGH_WATER; whoever wants the whole answer must let it go on."""
    connection = UpstreamConnection(asyncio.get_running_loop(), lambda c: None, lambda c: None)
    transport = _Transport()
    connection.connection_made(transport)
    exchange = connection.send([b"x"], Timeouts())
    size = HIGH_WATER + 100_000
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    connection.data_received(head + b"a" * (HIGH_WATER + 1))
    await exchange.head()
    assert not transport.reading
    reading = asyncio.ensure_future(exchange.read_all(10_000_000))
    await asyncio.sleep(0)
    assert transport.reading
    connection.data_received(b"a" * 99_999)
    data, ended = await asyncio.wait_for(reading, 10)
    assert (len(data), ended) == (size, True)
