"""Contract with uvicorn: limits on heads, slow clients, pipelining; heads sent with bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from sage_gateway.config import ServerLimits


async def read_all(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 10)


async def test_a_head_that_is_too_big(lab: Any) -> None:
    gateway = await lab.gateway(server=ServerLimits(max_header_bytes=2048))
    reader, writer = await gateway.connect()
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 5000 + b"\r\n\r\n")
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    writer.close()
    await writer.wait_closed()


async def test_a_head_that_never_ends(lab: Any) -> None:
    gateway = await lab.gateway(server=ServerLimits(max_header_bytes=2048))
    reader, writer = await gateway.connect()
    writer.write(b"GET /health HTTP/1.1\r\nx-big: ")
    for size in (1000, 1500):
        writer.write(b"a" * size)
        for _ in range(20):  # turns of the loop that the server shares with us: it reads each piece
            await asyncio.sleep(0)
    assert (await read_all(reader)).startswith(b"HTTP/1.1 431 ")
    writer.close()
    await writer.wait_closed()


async def test_too_many_headers(lab: Any) -> None:
    gateway = await lab.gateway()
    reader, writer = await gateway.connect()
    writer.write(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n")
    assert (await read_all(reader)).startswith(b"HTTP/1.1 431 ")
    writer.close()
    await writer.wait_closed()


async def test_a_slow_head(lab: Any) -> None:
    gateway = await lab.gateway(server=ServerLimits(read_timeout_s=0.05))
    reader, writer = await gateway.connect()
    writer.write(b"GET /health HT")
    assert (await read_all(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()
    silent, its_writer = await gateway.connect()
    assert await read_all(silent) == b""
    its_writer.close()
    await asyncio.gather(writer.wait_closed(), its_writer.wait_closed())


async def test_a_slow_second_head_on_a_kept_connection(lab: Any) -> None:
    gateway = await lab.gateway(server=ServerLimits(read_timeout_s=0.05))
    reader, writer = await gateway.connect()
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"}")
    writer.write(b"GET /health HT")
    assert (await read_all(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_limits_hold_on_a_kept_connection(lab: Any) -> None:
    gateway = await lab.gateway(server=ServerLimits(max_header_bytes=2048))
    reader, writer = await gateway.connect()
    # A big body before it does not count as head.
    writer.write(b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b'{"status":"ok"}')
    for piece in (b"GET /health HTTP/1.1\r\nx-big: ", b"a" * 1500, b"a" * 1500):
        writer.write(piece)
        for _ in range(20):  # turns of the loop that the server shares with us: it reads each piece
            await asyncio.sleep(0)
    assert (await read_all(reader)).startswith(b"HTTP/1.1 431 ")
    writer.close()
    await writer.wait_closed()


async def test_not_http(lab: Any) -> None:
    gateway = await lab.gateway()
    reader, writer = await gateway.connect()
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/json" in answer
    writer.close()
    await writer.wait_closed()


async def test_smuggling_is_refused(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    both = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
    )
    folded = b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c: d\n\n\r\n"
    for text in (both, folded, b"GET /health HTTP/1.1\r\nbad header: x\r\n\r\n"):
        reader, writer = await gateway.connect()
        writer.write(text)
        assert (await read_all(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()
    assert not peer.requests


async def test_pipelined_requests_are_answered_in_order(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    body = orjson.dumps(lab.CHAT)
    chat = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    writer.write(chat + chat + last)
    answer = await read_all(reader)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.rstrip().endswith(b'{"status":"ok"}')
    writer.close()
    await writer.wait_closed()


async def test_a_head_without_a_body_is_sent(lab: Any) -> None:
    gateway = await lab.gateway()
    for _ in range(2):  # on a kept connection, too
        answer = await gateway.client.head("/health")
        assert answer.status_code == 200
        assert answer.content == b""


async def test_websocket_upgrades_are_not_served(lab: Any) -> None:
    gateway = await lab.gateway()
    answer = await gateway.client.get(
        "/health", headers={"connection": "upgrade", "upgrade": "websocket"}
    )
    assert answer.status_code == 200  # answered as plain HTTP


async def test_expect_continue(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    body = orjson.dumps(lab.CHAT)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.KEY}\r\n"
        "content-type: application/json\r\nexpect: 100-continue\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
    )
    assert (await asyncio.wait_for(reader.readline(), 10)) == b"HTTP/1.1 100 Continue\r\n"
    writer.write(body)
    await reader.readline()
    assert (await asyncio.wait_for(reader.readline(), 10)) == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    await writer.wait_closed()


def chat_head(lab: Any, length: int, key: str | None = None) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer {key or lab.KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request in one piece; the status line of its answer, which is read to its end."""
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await asyncio.wait_for(reader.readexactly(length), 10)
    return head.partition(b"\r\n")[0]


async def test_a_head_that_came_before_serves_again_with_another_length(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    for word in ("one", "quite another one", "one", "x" * 3000):
        body = orjson.dumps({**lab.CHAT, "user": word})
        assert b" 200 " in await ask(reader, writer, chat_head(lab, len(body)) + body)
        assert peer.posts[-1].json["user"] == word
    writer.close()
    await writer.wait_closed()


async def test_a_known_head_with_a_body_in_pieces(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    body = orjson.dumps(lab.CHAT)
    whole = chat_head(lab, len(body)) + body
    cuts = (10, len(whole) - len(body), len(whole) - 3)
    for cut in cuts:
        assert b" 200 " in await ask(reader, writer, whole)  # it is known, each time
        writer.write(whole[:cut])
        for _ in range(20):  # turns of the loop that the server shares with us: it reads each piece
            await asyncio.sleep(0)
        assert b" 200 " in await ask(reader, writer, whole[cut:])
    assert [post.body for post in peer.posts] == [body] * 2 * len(cuts)
    writer.close()
    await writer.wait_closed()


async def test_the_rest_of_a_body_is_no_request_even_if_it_looks_like_a_known_one(lab: Any) -> None:
    """A request that was refused before its body came: what follows is that body, no request."""
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    body = orjson.dumps(lab.CHAT)
    known = chat_head(lab, len(body)) + body
    assert b" 200 " in await ask(reader, writer, known)
    by_key = chat_head(lab, len(known), key="sk-wrong")
    by_method = f"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: {len(known)}\r\n\r\n".encode()
    for refused, status in ((by_method, b" 405 "), (by_key, b" 401 ")):
        assert status in await ask(reader, writer, refused)
        writer.write(known)  # the body of the refused one
        for _ in range(20):  # turns of the loop that the server shares with us: it reads it alone
            await asyncio.sleep(0)
        assert b" 200 " in await ask(reader, writer, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert len(peer.posts) == 1
    writer.close()
    await writer.wait_closed()


async def test_a_known_head_keeps_its_own_key(lab: Any) -> None:
    """Two requests in one read: the head of the first must not be taken for the second's."""
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    reader, writer = await gateway.connect()
    body = orjson.dumps(lab.CHAT)
    wrong = chat_head(lab, len(body), key="sk-wrong") + body
    right = chat_head(lab, len(body)) + body
    assert b" 401 " in await ask(reader, writer, wrong + right)
    await reader.readuntil(b"200 OK")
    await reader.readuntil(b'completion_tokens":2}}')
    for _ in range(3):
        assert b" 401 " in await ask(reader, writer, wrong)
        assert b" 200 " in await ask(reader, writer, right)
    writer.close()
    await writer.wait_closed()


async def test_whole_overhead_is_counted_for_whole_and_streamed_answers(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    for stream in (False, True):
        await gateway.chat(stream=stream)
    whole = gateway.metric("sage_gateway_whole_overhead_seconds_sum", route="chat")
    assert gateway.metric("sage_gateway_whole_overhead_seconds_count", route="chat") == 2
    assert whole > gateway.metric("sage_gateway_overhead_seconds_sum", route="chat") > 0
