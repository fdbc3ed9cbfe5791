"""One HTTP request over asyncio streams, for the supervisor's probes and the gateway's management.

Small on purpose: httpx with what it imports would double the supervisor's start-up time, and a
thread with a blocking client would fork beside other threads.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

_MAX_BYTES = 8 << 20


class RequestError(OSError):
    """No answer: refused, cut off, too slow, or no HTTP."""


@dataclass(frozen=True)
class Answer:
    """Status and whole body of a response."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout_s: float = 5.0,
) -> Answer:
    """Send one request on a connection of its own and read the whole answer (at most 8 MiB).

    Raises:
        RequestError: says why there was no answer.
    """
    try:
        return await asyncio.wait_for(_request(method, url, headers or {}, body), timeout_s)
    except (TimeoutError, asyncio.TimeoutError) as error:  # two types before Python 3.11
        raise RequestError(f"no answer within {timeout_s:g} s") from error
    except (http.client.HTTPException, asyncio.IncompleteReadError) as error:
        raise RequestError(f"no valid HTTP answer ({type(error).__name__})") from error
    except OSError as error:
        raise RequestError(error.strerror or str(error) or type(error).__name__) from error


async def _request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        await writer.drain()
        received = await _read_all(reader)
    finally:
        writer.close()
    # The standard library parses status, headers and chunks, from memory.
    response = http.client.HTTPResponse(cast(socket.socket, _Memory(received)))
    response.begin()
    return Answer(response.status, response.read())


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    while block := await reader.read(1 << 16):
        received += block
        if len(received) > _MAX_BYTES:
            raise RequestError(f"the answer is over {_MAX_BYTES} bytes")
    return bytes(received)


class _Memory:
    """What HTTPResponse wants of a socket: a file to read from."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        """The bytes received."""
        return io.BytesIO(self._content)
