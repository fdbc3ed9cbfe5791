"""``/v1/management/engines``: register, drain, remove."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import ConfigDict, Field, field_validator
from pydantic.config import JsonDict
from starlette.exceptions import HTTPException

from sage_gateway.dialects.native_routes import ROUTES
from sage_gateway.engines import ENGINE_NAME, EngineConfig, ServedModel
from sage_gateway.gateway import Gateway
from sage_gateway.management_body import Body
from sage_gateway.served_model import Mode
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineProfile

# What is surely one; other addresses may be, too.
_URL = r"^https?://[a-z0-9]+(\.[a-z0-9]+)*(:[1-9][0-9]{0,3})?(/[A-Za-z0-9._/-]*)?$"


class ProfileIn(Body):
    """How long an engine's work takes, in seconds; docs/gateway.md has the formulas."""

    c0: float = Field(0.0, ge=0, le=3600, description="Of any iteration.")
    a: float = Field(0.0, ge=0, le=3600, description="Per prefill token.")
    b: float = Field(0.0, ge=0, le=3600, description="Per sequence.")
    g: float = Field(0.0, ge=0, le=3600, description="Per token of context.")
    s0: float = Field(0.0, ge=0, le=3600, description="Of any embedding call.")
    alpha: float = Field(0.0, ge=0, le=3600, description="Per token of an embedding call.")


class ModelIn(Body):
    """A model that an engine serves."""

    name: str = Field(min_length=1, max_length=256, description="Name that clients use.")
    mode: Mode = "chat"
    order: int = Field(1, ge=0, description="Engines of a lower order come first.")


_ONE_UPSTREAM_MODEL: JsonDict = {
    "if": {"required": ["upstream_model"], "properties": {"upstream_model": {"type": "string"}}},
    "then": {"properties": {"models": {"maxItems": 1}}},
}


class EngineIn(Body):
    """An engine to register. Registering a known name again replaces it."""

    model_config = ConfigDict(json_schema_extra=_ONE_UPSTREAM_MODEL)

    name: str = Field(
        min_length=1, max_length=128, json_schema_extra={"pattern": f"^{ENGINE_NAME.pattern}$"}
    )
    base_url: str = Field(
        description="Such as http://127.0.0.1:8001/v1.",
        json_schema_extra={"pattern": _URL},
    )
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
    padded: bool = Field(
        False, description="An embedding engine that pads a batch to its longest input."
    )
    profile: ProfileIn | None = Field(None, description="None: it is learned.")
    weight: float = Field(
        1.0, gt=0, le=1e9, allow_inf_nan=False, description="Policy `random` draws it so often."
    )
    routes: list[str] = Field(
        [],
        max_length=32,
        json_schema_extra={"items": {"type": "string", "enum": [*sorted(ROUTES)]}},
        description="Routes that it has besides those of its driver.",
    )
    api_key: str | None = Field(
        None,
        description="Key of the engine; never shown again.",
        json_schema_extra={"anyOf": [{"type": "string", "pattern": "^[!-~]+$"}, {"type": "null"}]},
    )

    @field_validator("routes")
    @classmethod
    def _known_routes(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ROUTES:
                raise ValueError(f"{name!r} is no route; known: {', '.join(sorted(ROUTES))}")
        return names

    upstream_model: str | None = Field(
        None, max_length=256, description="The model's name at the engine, where it differs."
    )

    def config(self) -> EngineConfig:
        """What the gateway keeps."""
        return EngineConfig(
            name=self.name,
            base_url=self.base_url,
            models=tuple(
                ServedModel(m.name, m.mode, self.upstream_model, m.order) for m in self.models
            ),
            driver=self.driver,
            device=self.device,
            max_concurrency=self.max_concurrency,
            api_key=self.api_key,
            takes_priority=self.takes_priority,
            price=self.price,
            kv_tokens=self.kv_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_inputs=self.max_batch_inputs,
            padded=self.padded,
            profile=self._profile(),
            weight=self.weight,
            routes=frozenset(self.routes),
            accelerator=self.accelerator,
            origin="management",
        )

    def _profile(self) -> EngineProfile | None:
        if self.profile is None:
            return None
        return EngineProfile(**self.profile.model_dump(), source="management API")


def engine_routes(gateway: Gateway) -> APIRouter:
    """Routes of engines."""
    routes = APIRouter(prefix="/v1/management/engines")

    def state_of(name: str) -> dict[str, Any]:
        for state in gateway.engine_states():
            if state["name"] == name:
                return state
        known = ", ".join(engine.name for engine in gateway.engines) or "none"
        raise HTTPException(404, f"There is no engine {name!r}. Known engines: {known}.")

    @routes.get("")
    async def list_engines() -> dict[str, Any]:
        """All engines with their live state."""
        return {"engines": gateway.engine_states()}

    @routes.post("", status_code=201, responses={200: {"description": "Replaced."}})
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

    @routes.post("/{name:path}/drain")
    async def drain_engine(name: str) -> dict[str, Any]:
        """Give an engine nothing new; what runs in it finishes (see `in_flight`)."""
        state_of(name)
        gateway.states.drain(name)
        return state_of(name)

    @routes.post("/{name:path}/undrain")
    async def undrain_engine(name: str) -> dict[str, Any]:
        """Let a drained engine take requests again."""
        state_of(name)
        gateway.states.undrain(name)
        return state_of(name)

    @routes.delete("/{name:path}")
    async def remove_engine(name: str) -> dict[str, Any]:
        """Take an engine away; requests inside it finish."""
        state_of(name)
        gateway.remove(name)
        return {"removed": name}

    return routes
