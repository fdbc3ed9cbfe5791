"""``/v1/management``: what can be seen and changed at run time. Only the master key gets here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sage_gateway.errors import error_body
from sage_gateway.gateway import Gateway
from sage_gateway.key_store import StoreUnavailable
from sage_gateway.management_body import Body
from sage_gateway.management_engines import engine_routes
from sage_gateway.management_keys import key_routes
from sage_gateway.openapi import describe
from sage_prefect import __version__
from sage_prefect.common.errors import SageError, UnknownNameError
from sage_prefect.control_plane.strategies import POLICIES

_STORE_RETRY_S = 5


class PolicyIn(Body):
    """The policy to switch to."""

    policy: str = Field(json_schema_extra={"enum": [*sorted(POLICIES)]})


def management_app(gateway: Gateway) -> FastAPI:
    """The FastAPI application of the management routes and their documentation pages."""
    app = FastAPI(
        title="SAGE gateway",
        version=__version__,
        description="LLM and embedding requests, and management.",
        redoc_url=None,
    )
    app.include_router(engine_routes(gateway))
    app.include_router(key_routes(gateway))

    @app.get("/v1/management/state")
    async def get_state() -> dict[str, Any]:
        """What is going on: queue, engines, models, tenants' limits, configuration."""
        return gateway.state()

    @app.post("/v1/management/reload")
    async def reload() -> dict[str, Any]:
        """Read the configuration file again: all of it takes effect, or nothing (400)."""
        return (await gateway.reload()).public()

    @app.get("/v1/management/policy")
    async def get_policy() -> dict[str, Any]:
        """The scheduling policy and the known ones."""
        return {"policy": gateway.manager.policy.name, "known": sorted(POLICIES)}

    @app.put("/v1/management/policy")
    async def set_policy(wanted: PolicyIn) -> dict[str, Any]:
        """Switch the policy; queued requests keep their place."""
        gateway.set_policy(wanted.policy)
        return await get_policy()

    @app.get("/v1/management/explain/{request_id:path}")
    async def explain(request_id: str) -> dict[str, Any]:
        """What was decided about a request, and why (the last thousand or so are known)."""
        story = gateway.manager.explain(request_id)
        if story is None:
            raise HTTPException(404, f"Nothing is known of the request {request_id!r}.")
        return story

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'] if part != 'body') or 'body'}: "
            f"{item['msg']}"
            for item in error.errors()
        )
        return _error(400, problems, "invalid_request")

    @app.exception_handler(SageError)
    async def on_refused(request: Request, error: SageError) -> Response:
        if isinstance(error, StoreUnavailable):
            answer = _error(503, str(error), "store_unavailable")
            answer.headers["retry-after"] = str(_STORE_RETRY_S)
            return answer
        code = "unknown_name" if isinstance(error, UnknownNameError) else "invalid_request"
        return _error(400, str(error), code)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "refused")
        answer = _error(error.status_code, str(error.detail), code)
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            # Starlette names the methods of the first route that has the path.
            answer.headers["allow"] = ", ".join(_methods(app, request))
        return answer

    describe(app)
    return app


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What may be done with a request's path."""
    found: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _error(status: int, message: str, code: str) -> Response:
    return Response(
        error_body(status, message, code=code), status_code=status, media_type="application/json"
    )
