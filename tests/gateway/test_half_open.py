"""Peers that vanish without a word, in a network namespace of their own: no FIN, no RST, no ACK."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from sage_gateway.config import HealthConfig
from sage_gateway.upstream import Timeouts

QUIET = HealthConfig(probe_interval_s=60, failures=1000)
HERE, THERE = "10.213.77.1", "10.213.77.2"
# Answers; a stream it only begins.
_ENGINE = """
import asyncio, sys
async def converse(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        length = int(head.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
        body = await reader.readexactly(length)
        if b'"stream":true' in body.replace(b" ", b""):
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\n"
                         b"transfer-encoding: chunked\\r\\n\\r\\n")
            event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\\n\\n'
            writer.write(b"%x\\r\\n%b\\r\\n" % (len(event), event))
        else:
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 14\\r\\n\\r\\n")
            writer.write(b'{"choices":[]}')
async def main():
    server = await asyncio.start_server(converse, sys.argv[1], 8000)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


class Elsewhere:
    """A machine that can vanish."""

    def __init__(self) -> None:
        self.name = f"sage-{uuid.uuid4().hex[:8]}"
        self._link = f"sg{uuid.uuid4().hex[:8]}"
        self._engine: subprocess.Popen[str] | None = None
        run("ip", "netns", "add", self.name)
        other = f"{self._link}p"
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", other)
        run("ip", "link", "set", other, "netns", self.name)
        run("ip", "addr", "add", f"{HERE}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        self._inside("ip", "addr", "add", f"{THERE}/30", "dev", other)
        self._inside("ip", "link", "set", other, "up")

    def _inside(self, *command: str) -> None:
        run("ip", "netns", "exec", self.name, *command)

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def start_engine(self) -> None:
        self._engine = self.start(_ENGINE, THERE)
        assert self._engine.stdout is not None
        assert self._engine.stdout.readline() == "up\n"

    def vanish(self) -> None:
        """Nothing leaves it any more, not even an acknowledgement."""
        self._inside("ip", "route", "add", "blackhole", f"{HERE}/32")

    def close(self) -> None:
        if self._engine is not None:
            self._engine.kill()
            self._engine.wait()
            assert self._engine.stdout is not None
            self._engine.stdout.close()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        machine = Elsewhere()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace here: {error.stderr!r}")
    yield machine
    machine.close()


async def test_a_kept_connection_to_a_vanished_engine_is_given_up(
    lab: Any, elsewhere: Elsewhere
) -> None:
    elsewhere.start_engine()
    good = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(f"http://{THERE}:8000/v1", "gone"),
        lab.engine(good, "good"),
        health=QUIET,
        policy="least_outstanding",
        timeouts=Timeouts(unreachable_s=1.0),
    )
    answers = [await gateway.chat() for _ in range(2)]
    assert {answer.headers["x-sage-engine"] for answer in answers} == {"gone", "good"}
    elsewhere.vanish()
    answers = await asyncio.gather(*(gateway.chat() for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.headers["x-sage-engine"] for answer in answers} == {"good"}


async def test_a_stream_of_a_vanished_engine_ends_with_an_error(
    lab: Any, elsewhere: Elsewhere
) -> None:
    elsewhere.start_engine()
    gateway = await lab.gateway(
        lab.engine(f"http://{THERE}:8000/v1", "gone"),
        health=QUIET,
        timeouts=Timeouts(unreachable_s=1.0),
    )
    async with gateway.client.stream(
        "POST", "/v1/chat/completions", json={**lab.CHAT, "stream": True}
    ) as answer:
        pieces = answer.aiter_bytes()
        assert b'"a"' in await anext(pieces)
        elsewhere.vanish()
        rest = b"".join([piece async for piece in pieces])
    assert b"answer_incomplete" in rest
    assert b"cannot be reached any more" in rest
    assert not gateway.gateway.manager.running


async def test_a_vanished_client_gives_its_slot_back(lab: Any, elsewhere: Elsewhere) -> None:
    async def waits(request: Any) -> None:
        if request.method == "POST":
            await request.until_gone()

    peer = await lab.peer(waits)
    gateway = await lab.gateway(
        lab.engine(peer), health=QUIET, host=HERE, timeouts=Timeouts(unreachable_s=1.0)
    )
    body = orjson.dumps(lab.CHAT).decode()
    asks = f"""
import socket, sys, time
connection = socket.create_connection(({HERE!r}, {gateway.port}))
body = {body!r}
connection.sendall((
    "POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nauthorization: Bearer {lab.KEY}"
    f"\\r\\ncontent-length: {{len(body)}}\\r\\n\\r\\n{{body}}").encode())
time.sleep(60)
"""
    client = elsewhere.start(asks)
    try:
        await lab.until(lambda: gateway.gateway.manager.running, "a request in the engine")
        elsewhere.vanish()
        await lab.until(lambda: not gateway.gateway.manager.running, "an end of it")
    finally:
        client.kill()
        client.communicate()
