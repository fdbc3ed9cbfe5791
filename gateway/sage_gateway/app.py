"""The ASGI callable: allow-list of paths, key check, and one door to each kind of route.

No framework on the data path. FastAPI serves ``/v1/management``, ``/docs`` and
``/openapi.json`` only, and is imported when the first of them is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sage_gateway.client_exchange import ClientExchange
from sage_gateway.dialects.model_list import asks_anthropic, model_entry, model_list
from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.gateway import Gateway
from sage_gateway.reply import Receive, Reply, Send, request_id_of
from sage_gateway.routes import INFERENCE_ROUTES

log = logging.getLogger(__name__)

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

_MANAGEMENT = "/v1/management/"
_DOCUMENTATION = frozenset({"/docs", "/openapi.json"})
_MODELS = "/v1/models"


class GatewayApp:
    """ASGI application of one gateway.

    Args:
        gateway: the parts.
        on_loopback: bound to a loopback address: metrics and API pages need no key then.
    """

    def __init__(self, gateway: Gateway, *, on_loopback: bool) -> None:
        self.gateway = gateway
        self._on_loopback = on_loopback
        self._management: AsgiApp | None = None
        self._importing: asyncio.Future[AsgiApp] | None = None
        self._plain: dict[str, Callable[[dict[bytes, bytes], Reply], Awaitable[None]]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            _MODELS: self._models,
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"unsupported ASGI scope {scope['type']!r}")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        reply = Reply(send, request_id_of(headers))
        try:
            await self._route(scope, headers, receive, reply, send)
        except HttpError as error:
            if not reply.status:
                await reply.error(error)
        except ClientGone:
            return
        except Exception:
            _log_failure(reply.request_id)
            if reply.status:
                raise
            await reply.error(_internal_error())

    async def serve(self, exchange: ClientExchange) -> None:
        """Serve an inference request, which comes straight from its connection."""
        try:
            memo, keys = exchange.memo, self.gateway.keys
            headers = exchange.headers
            caller = keys.caller(headers) if memo is None else keys.caller_again(headers, memo)
            await self.gateway.inference.serve(exchange.route, caller, exchange)
        except HttpError as error:
            if not exchange.status:
                exchange.error(error)
        except ClientGone:
            return
        except Exception:  # noqa: BLE001 - logged and answered with 500
            _log_failure(exchange.request_id)
            if exchange.status:
                exchange.cut()
                return
            exchange.error(_internal_error())

    async def _route(
        self,
        scope: dict[str, Any],
        headers: dict[bytes, bytes],
        receive: Receive,
        reply: Reply,
        send: Send,
    ) -> None:
        path: str = scope["path"]
        method: str = scope["method"]
        if path in INFERENCE_ROUTES:
            _allow(method, ("POST",))  # a POST does not come here: see serve()
        plain = self._plain.get(path)
        if plain is not None:
            _allow(method, ("GET", "HEAD"))
            await plain(headers, reply)
            return
        if path.startswith(_MODELS + "/"):
            _allow(method, ("GET", "HEAD"))
            await self._model(headers, reply, path.removeprefix(_MODELS + "/"))
            return
        if path.startswith(_MANAGEMENT):
            self.gateway.keys.manager(headers)
        elif path in _DOCUMENTATION:
            self._check_operator(headers)
        else:
            raise HttpError(404, f"There is no {path[:100]!r} here.", code="unknown_path")
        app = self._management or await self._load_management()
        await app(scope, receive, send)

    # -- small routes ---------------------------------------------------------------------

    async def _health(self, headers: dict[bytes, bytes], reply: Reply) -> None:
        await reply.json(200, {"status": "ok"})

    async def _ready(self, headers: dict[bytes, bytes], reply: Reply) -> None:
        if self.gateway.ready:
            await reply.json(200, {"status": "ready"})
            return
        raise HttpError(503, "No engine takes requests at present.", code="not_ready")

    async def _metrics(self, headers: dict[bytes, bytes], reply: Reply) -> None:
        self._check_operator(headers)
        text, content_type = self.gateway.metrics.render()
        await reply.whole(200, text, content_type.encode("ascii"))

    async def _models(self, headers: dict[bytes, bytes], reply: Reply) -> None:
        access = self.gateway.keys.caller(headers).access
        names = [name for name in self.gateway.engines.names.listed() if access.allows(name)]
        await reply.json(200, model_list(names, anthropic=asks_anthropic(headers)))

    async def _model(self, headers: dict[bytes, bytes], reply: Reply, name: str) -> None:
        access, names = self.gateway.keys.caller(headers).access, self.gateway.engines.names
        if not names.is_known(name) or not access.allows(name):
            known = [known for known in names.listed() if access.allows(known)]
            raise HttpError(
                404,
                f"The model {name[:100]!r} does not exist. Known models: "
                f"{', '.join(known[:20]) or 'none'}.",
                code="model_not_found",
                param="model",
            )
        await reply.json(200, model_entry(name, anthropic=asks_anthropic(headers)))

    # -- inside ---------------------------------------------------------------------------

    def _check_operator(self, headers: dict[bytes, bytes]) -> None:
        """Operators' pages: open on loopback, else with the master key."""
        if not self._on_loopback:
            self.gateway.keys.manager(headers)

    async def _load_management(self) -> AsgiApp:
        """Import FastAPI in a thread: streams go on while it loads."""
        if self._importing is None:
            self._importing = asyncio.get_running_loop().run_in_executor(None, self._build)
        self._management = await self._importing
        return self._management

    def _build(self) -> AsgiApp:
        from sage_gateway.management import management_app

        return management_app(self.gateway)


def _log_failure(request_id: bytes) -> None:
    log.exception(
        "request failed inside the gateway",
        extra={"fields": {"request_id": request_id.decode("ascii")}},
    )


def _internal_error() -> HttpError:
    return HttpError(
        500, "The gateway failed; its log says why under this request's id.", code="internal_error"
    )


def _allow(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(
            405,
            f"The method {method} is not allowed here; use {allowed[0]}.",
            code="method_not_allowed",
            headers=((b"allow", names.encode("ascii")),),
        )
