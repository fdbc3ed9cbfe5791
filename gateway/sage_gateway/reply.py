"""Answering one request over ASGI, with the headers that every answer of ours carries."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from sage_gateway.errors import HttpError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

JSON = b"application/json"

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_PREFIX = f"req-{secrets.token_hex(6)}-".encode()
_COUNTER = itertools.count(1)


def request_id_of(headers: dict[bytes, bytes]) -> bytes:
    """The client's ``x-request-id`` if it is sane, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return b"%b%x" % (_PREFIX, next(_COUNTER))


class Reply:
    """One answer: whole (:meth:`whole`), or started and then fed (:meth:`start`, :meth:`more`).

    ``status`` is 0 until something has been sent: as long as it is, another engine may try.
    """

    __slots__ = ("_send", "extra", "request_id", "status")

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0
        self.extra: HeaderList | None = None
        """Headers of every answer to this request, errors too."""

    async def whole(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: HeaderList | None = None,
    ) -> None:
        """Send a complete answer."""
        all_headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id),
        ]
        if headers:
            all_headers += headers
        if self.extra:
            all_headers += self.extra
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start(
        self,
        status: int,
        content_type: bytes,
        headers: HeaderList,
        content_length: int | None = None,
    ) -> None:
        """Send status and headers; the body follows in pieces."""
        all_headers = [(b"content-type", content_type), (b"x-request-id", self.request_id)]
        if content_length is not None:
            all_headers.append((b"content-length", b"%d" % content_length))
        if self.extra:
            all_headers += self.extra
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": all_headers + headers}
        )

    async def more(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        await self._send({"type": "http.response.body", "body": data})

    async def json(self, status: int, content: Any) -> None:
        """Send a JSON answer."""
        await self.whole(status, orjson.dumps(content))

    async def error(self, error: HttpError) -> None:
        """Send an error in OpenAI's shape."""
        await self.whole(error.status, error.body(), JSON, list(error.headers))
