"""``/v1/management``: engines and policy at run time. The app has checked the master key."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from sage_gateway.engines import EngineConfig, ServedModel
from sage_gateway.errors import error_body
from sage_gateway.gateway import Gateway
from sage_prefect.common.errors import SageError, SettingsError, UnknownNameError
from sage_prefect.control_plane.strategies import POLICIES


class ModelIn(BaseModel):
    """A model that an engine serves."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=256, description="Name that clients use.")
    mode: Literal["chat", "completion", "embedding"] = "chat"


class EngineIn(BaseModel):
    """An engine to register. Registering a known name again replaces it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=128)
    base_url: str = Field(description="Such as http://127.0.0.1:8001/v1.")
    models: list[ModelIn] = Field(min_length=1, max_length=10_000)
    driver: str = Field("openai", max_length=64)
    device: str = Field("cpu", max_length=64)
    max_concurrency: int = Field(8, ge=1, le=100_000, description="The engine's window.")
    takes_priority: bool = Field(
        False, description="It schedules by the body's `priority`; others never get one."
    )
    price: float = Field(
        1.0, ge=0, le=1e9, allow_inf_nan=False, description="Of its time; policy `cost` uses it."
    )
    kv_tokens: int | None = Field(
        None, ge=1, le=1 << 32, description="Tokens that its KV cache holds."
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, le=1 << 32, description="Tokens of one iteration or embedding call."
    )
    max_batch_inputs: int | None = Field(
        None, ge=1, le=2048, description="Inputs of one embedding call; default by driver."
    )
    accelerator: str | None = Field(
        None, max_length=128, description="The physical device; engines that name one share it."
    )
    api_key: str | None = Field(None, description="Key of the engine; never shown again.")
    upstream_model: str | None = Field(
        None, max_length=256, description="The model's name at the engine, where it differs."
    )

    def config(self) -> EngineConfig:
        """What the gateway keeps."""
        return EngineConfig(
            name=self.name,
            base_url=self.base_url,
            models=tuple(ServedModel(m.name, m.mode, self.upstream_model) for m in self.models),
            driver=self.driver,
            device=self.device,
            max_concurrency=self.max_concurrency,
            api_key=self.api_key,
            takes_priority=self.takes_priority,
            price=self.price,
            kv_tokens=self.kv_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_inputs=self.max_batch_inputs,
            accelerator=self.accelerator,
            origin="management",
        )


class PolicyIn(BaseModel):
    """The policy to switch to."""

    model_config = ConfigDict(extra="forbid")

    policy: str


def management_app(gateway: Gateway) -> FastAPI:
    """The FastAPI application of the management routes and their documentation pages."""
    app = FastAPI(title="SAGE gateway", description="Management API.", redoc_url=None)

    @app.get("/v1/management/engines")
    async def list_engines() -> dict[str, Any]:
        """All engines with their live state."""
        return {"engines": gateway.engine_states()}

    @app.post("/v1/management/engines", status_code=201)
    async def register_engine(engine: EngineIn, response: Response) -> dict[str, Any]:
        """Register an engine (201), or replace the one of that name (200)."""
        if engine.upstream_model is not None and len(engine.models) > 1:
            raise SettingsError(
                "upstream_model names one model, but the engine serves several.",
                hint="Register the engine once per model, under different names.",
            )
        config = engine.config()
        response.status_code = 201 if gateway.register(config) else 200
        return config.public()

    @app.delete("/v1/management/engines/{name:path}")
    async def remove_engine(name: str) -> dict[str, Any]:
        """Take an engine away; requests inside it finish."""
        if not gateway.remove(name):
            known = ", ".join(engine.name for engine in gateway.engines) or "none"
            raise HTTPException(404, f"There is no engine {name!r}. Known engines: {known}.")
        return {"removed": name}

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
        code = "unknown_name" if isinstance(error, UnknownNameError) else "invalid_request"
        return _error(400, str(error), code)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        return _error(error.status_code, str(error.detail), codes.get(error.status_code, "refused"))

    return app


def _error(status: int, message: str, code: str) -> Response:
    return Response(
        error_body(status, message, code=code), status_code=status, media_type="application/json"
    )
