"""The library's end: a small OpenAI-compatible server for the gateway alone, on its socket.

``python -m sage_gateway.providers.server FD GRACE_S``; the first line of standard input says what
to serve, its end says that the gateway has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import uvicorn

from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.providers.calls import arguments_of, as_json, error_of
from sage_gateway.reply import Reply, request_id_of
from sage_gateway.request_body import body_too_large, parse_body
from sage_prefect.common.logs import configure_logging

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30  # the gateway has its own limit
_READ_S = 60.0
_ROUTES = {
    "chat/completions": ("chat", "messages"),
    "completions": ("completions", "prompt"),
    "embeddings": ("embeddings", "input"),
}

Call = Callable[..., Awaitable[Any]]


async def _read(receive: Any) -> bytes:
    """The whole body; the gateway, which has checked it, sends it at once.

    Raises:
        HttpError: 408 or 413.
        ClientGone: the gateway gave up.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        try:
            message = await asyncio.wait_for(receive(), _READ_S)
        except asyncio.TimeoutError:
            raise HttpError(
                408, "The request's body came too slowly.", code="request_timeout"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MOST_BYTES:
            raise body_too_large(_MOST_BYTES)
        more = message.get("more_body", False)
    return b"".join(parts)


class ProviderServer:
    """ASGI application.

    Args:
        token: what the gateway shows.
        deployments: engine name -> ``litellm_params``.
        calls: route -> the library's function.
    """

    def __init__(
        self, token: str, deployments: Mapping[str, Mapping[str, Any]], calls: Mapping[str, Call]
    ) -> None:
        self._expected = f"Bearer {token}".encode()
        self._deployments = deployments
        self._calls = calls

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        reply = Reply(send, request_id_of(headers))
        try:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
                raise HttpError(401, "Only the gateway may call.", code="invalid_api_key")
            await self._route(scope, headers, receive, reply)
        except HttpError as error:
            if not reply.status:
                await reply.error(error)
        except ClientGone:
            return

    async def _route(
        self, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Any, reply: Reply
    ) -> None:
        path: str = scope["path"]
        if path == "/health":
            await reply.json(200, {"status": "ok"})
            return
        name, _, route = path.removeprefix("/e/").rpartition("/v1/")
        settings = self._deployments.get(name)
        if settings is None or route not in _ROUTES:
            raise HttpError(404, f"There is no {path[:100]!r} here.", code="unknown_path")
        kind, required = _ROUTES[route]
        raw = await _read(receive)
        body = parse_body(raw, (required,))
        arguments = arguments_of(kind, body, settings)
        answering = asyncio.create_task(self._answer(self._calls[kind], arguments, reply))
        watching = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                raise ClientGone
            await answering
        finally:
            watching.cancel()

    async def _answer(self, call: Call, arguments: dict[str, Any], reply: Reply) -> None:
        try:
            answer = await call(**arguments)
        except Exception as error:
            raise error_of(error) from error
        if not arguments.get("stream"):
            await reply.whole(200, as_json(answer))
            return
        try:
            async for piece in answer:
                if not reply.status:
                    await reply.start(200, b"text/event-stream", [])
                await reply.more(b"data: %b\n\n" % as_json(piece))
        except Exception as error:
            if not reply.status:
                raise error_of(error) from error
            log.exception("a stream broke off")
            raise  # the connection is cut: the gateway must not take it for a whole answer
        if not reply.status:
            raise HttpError(502, "The provider's stream was empty.", code="provider_error")
        await reply.end(b"data: [DONE]\n\n")


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def library() -> dict[str, Call]:
    """The functions of the litellm library. Importing it takes seconds."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return {
        "chat": litellm.acompletion,
        "completions": litellm.atext_completion,
        "embeddings": litellm.aembedding,
    }


async def _serve(listener: socket.socket, app: ProviderServer, grace_s: float) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
    )
    orphaned = asyncio.create_task(_until_orphaned(server))
    try:
        await server.serve(sockets=[listener])
    finally:
        orphaned.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await orphaned


async def _until_orphaned(server: uvicorn.Server) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while await reader.read(4096):
            pass
        server.should_exit = True
    finally:
        transport.close()


def main() -> int:
    """Serve until SIGTERM or until the gateway has gone."""
    configure_logging()
    listener = socket.socket(fileno=int(sys.argv[1]))
    told = orjson.loads(sys.stdin.buffer.readline())
    deployments = {name: entry["settings"] for name, entry in told["deployments"].items()}
    app = ProviderServer(told["token"], deployments, library())
    asyncio.run(_serve(listener, app, float(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
