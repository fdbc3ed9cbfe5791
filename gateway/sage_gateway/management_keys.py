"""``/v1/management/tenants`` and ``/v1/management/keys``."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field
from starlette.exceptions import HTTPException

from sage_gateway.gateway import Gateway
from sage_gateway.management_body import Body
from sage_gateway.rate_limits import RateLimit
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.events import Band

BandName = Literal["critical", "interactive", "standard", "batch"]
_MOST = 1 << 40


class LimitsIn(Body):
    """Rights and limits that tenants and keys have in common."""

    bands: list[BandName] = Field(
        [], max_length=4, description="The first in urgency caps its requests; none: no cap."
    )
    models: list[str] = Field(
        [], max_length=1000, description="Names, `*` stands for any text; none: all models."
    )
    rpm: int | None = Field(None, ge=1, le=_MOST, description="Requests per minute.")
    tpm: int | None = Field(None, ge=1, le=_MOST, description="Tokens per minute.")
    max_parallel_requests: int | None = Field(
        None, ge=0, le=_MOST, description="Requests that wait or run at once."
    )

    def limit(self) -> RateLimit:
        """As the gateway keeps them."""
        return RateLimit(self.rpm, self.tpm, self.max_parallel_requests)

    def urgencies(self) -> tuple[Band, ...]:
        """The bands."""
        return tuple(Band[name.upper()] for name in self.bands)


class TenantIn(LimitsIn):
    """A tenant. Saying a known name again changes that tenant."""

    name: str = Field(min_length=1, max_length=128)
    weight: float = Field(
        1.0, ge=0.001, le=1e9, allow_inf_nan=False, description="Share of engine time."
    )
    max_queued: int | None = Field(None, ge=0, le=_MOST, description="Requests that wait.")
    max_running: int | None = Field(None, ge=0, le=_MOST, description="Requests in engines.")

    def config(self) -> TenantConfig:
        """What the gateway keeps."""
        return TenantConfig(
            self.name,
            None,
            self.weight,
            self.urgencies() or tuple(Band),
            self.max_queued,
            self.max_running,
            tuple(self.models),
            self.limit(),
        )


class KeyIn(LimitsIn):
    """A key to make. It may no more than its tenant."""

    tenant: str = Field(min_length=1, max_length=128)
    name: str = Field("", max_length=128, description="For people.")
    expires_in_s: float | None = Field(
        None, gt=0, le=1e9, allow_inf_nan=False, description="None: it does not expire."
    )


def key_routes(gateway: Gateway) -> APIRouter:
    """Routes of tenants and keys."""
    routes = APIRouter(prefix="/v1/management")
    directory = gateway.directory

    @routes.get("/tenants")
    async def list_tenants() -> dict[str, Any]:
        """All tenants; `origin` says whether the configuration file or this API has made them."""
        return {
            "tenants": [
                {
                    **tenant.public(),
                    "origin": "config" if directory.is_configured(tenant.name) else "management",
                }
                for tenant in directory.tenants
            ]
        }

    @routes.post("/tenants", status_code=201, responses={200: {"description": "Changed."}})
    async def put_tenant(tenant: TenantIn, response: Response) -> dict[str, Any]:
        """Make a tenant (201), or change the one of that name (200)."""
        config = tenant.config()
        response.status_code = 201 if await directory.put_tenant(config) else 200
        return config.public()

    @routes.delete("/tenants/{name:path}")
    async def remove_tenant(name: str) -> dict[str, Any]:
        """Forget a tenant and revoke its keys."""
        try:
            revoked = await directory.remove_tenant(name)
        except UnknownNameError as error:
            raise HTTPException(404, str(error)) from None
        return {"removed": name, "revoked": [record.key_id for record in revoked]}

    @routes.get("/keys")
    async def list_keys() -> dict[str, Any]:
        """All keys that were made here; revoked and expired ones for 90 days."""
        now = time.time()
        return {"keys": [record.public(now) for record in directory.keys]}

    @routes.post("/keys", status_code=201)
    async def create_key(wanted: KeyIn) -> dict[str, Any]:
        """Make a key. `key` is shown here and never again."""
        now = time.time()
        try:
            record, key = await directory.create_key(
                tenant=wanted.tenant,
                name=wanted.name,
                bands=wanted.urgencies(),
                models=tuple(wanted.models),
                limit=wanted.limit(),
                expires_at=None if wanted.expires_in_s is None else now + wanted.expires_in_s,
            )
        except UnknownNameError as error:
            raise HTTPException(404, str(error)) from None
        return {**record.public(now), "key": key}

    @routes.delete("/keys/{key_id}")
    async def revoke_key(key_id: str) -> dict[str, Any]:
        """Revoke a key: it opens nothing from now on. `stored` false: the store cannot be written
        at present; it is tried again until it can."""
        try:
            record, stored = await directory.revoke_key(key_id)
        except UnknownNameError as error:
            raise HTTPException(404, str(error)) from None
        return {**record.public(time.time()), "stored": stored}

    return routes
