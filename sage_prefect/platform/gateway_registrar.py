"""Tells the gateway which engines run (contract: /v1/management/engines, Bearer master key)."""

from __future__ import annotations

import httpx

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError, SettingsError
from sage_prefect.common.keys import read_master_key
from sage_prefect.platform.service import EngineRegistration

_PATH = "/v1/management/engines"
_TIMEOUT_S = 5.0


class GatewayRegistrar:
    """Calls the management API of the gateway that is published now, if any."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @property
    def gateway(self) -> str | None:
        """The gateway's URL, or None when none runs."""
        return endpoints.lookup("gateway")

    async def register(self, name: str, engine: EngineRegistration) -> None:
        """Add or replace an engine.

        Raises:
            ServiceError: no gateway, or it refused; the message says what it answered.
        """
        body = {
            "name": name,
            "base_url": engine.base_url,
            "models": [model.model_dump() for model in engine.models],
            "driver": engine.driver,
            "device": engine.device,
            "max_concurrency": engine.max_concurrency,
            "api_key": engine.api_key,
        }
        if engine.upstream_model is not None:
            body["upstream_model"] = engine.upstream_model
        response = await self._call("POST", _PATH, body)
        if response.status_code not in (200, 201):
            raise _refused(f"to register engine {name!r}", response)

    async def deregister(self, name: str) -> None:
        """Remove an engine; one that the gateway does not know is fine.

        Raises:
            ServiceError: no gateway, or it refused.
        """
        response = await self._call("DELETE", f"{_PATH}/{name}")
        if response.status_code not in (200, 204, 404):
            raise _refused(f"to remove engine {name!r}", response)

    async def known(self) -> dict[str, str]:
        """The engines that the gateway has: name -> base URL.

        Raises:
            ServiceError: no gateway, or it refused.
        """
        response = await self._call("GET", _PATH)
        if response.status_code != 200:
            raise _refused("to list its engines", response)
        listed = response.json()["engines"]
        return {str(item["name"]): str(item.get("base_url", "")) for item in listed}

    async def _call(self, method: str, path: str, body: object = None) -> httpx.Response:
        gateway = self.gateway
        if gateway is None:
            raise ServiceError("no gateway runs.", hint="Start one: `sage up`.")
        try:
            key = read_master_key()
        except SettingsError as error:
            raise ServiceError(error.message, hint=error.hint) from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return await self._client.request(
                method, gateway + path, json=body, headers=headers, timeout=_TIMEOUT_S
            )
        except httpx.HTTPError as error:
            raise ServiceError(
                f"the gateway at {gateway} does not answer: {str(error) or type(error).__name__}.",
                hint="See `sage status` and `sage logs gateway`.",
            ) from error


def _refused(what: str, response: httpx.Response) -> ServiceError:
    return ServiceError(
        f"the gateway refused {what}: status {response.status_code}, {response.text[:300]}",
        hint="A 401 means that it runs with another master key than ours.",
    )
