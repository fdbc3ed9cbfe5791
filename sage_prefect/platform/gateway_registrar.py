"""Tells the gateway which engines run (contract: /v1/management/engines, Bearer master key)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError, SettingsError
from sage_prefect.common.keys import read_master_key
from sage_prefect.platform import http_request
from sage_prefect.platform.http_request import Answer, RequestError
from sage_prefect.platform.service import EngineRegistration

log = logging.getLogger(__name__)

_PATH = "/v1/management/engines"
_TIMEOUT_S = 5.0


class GatewayRegistrar:
    """Calls the management API of the gateway that is published now, if any."""

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
        if engine.accelerator is not None:
            body["accelerator"] = engine.accelerator
        answer = await self._call("POST", _PATH, body)
        if answer.status not in (200, 201):
            raise _refused(f"to register engine {name!r}", answer)

    async def deregister(self, name: str) -> None:
        """Remove an engine; one that the gateway does not know is fine.

        Raises:
            ServiceError: no gateway, or it refused.
        """
        answer = await self._call("DELETE", f"{_PATH}/{name}")
        if answer.status not in (200, 204, 404):
            raise _refused(f"to remove engine {name!r}", answer)

    async def known(self) -> dict[str, str]:
        """The engines that the gateway has: name -> base URL.

        Raises:
            ServiceError: no gateway, or it refused.
        """
        answer = await self._call("GET", _PATH)
        if answer.status != 200:
            raise _refused("to list its engines", answer)
        try:
            listed = orjson.loads(answer.body)["engines"]
            return {str(item["name"]): str(item.get("base_url", "")) for item in listed}
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ServiceError(f"the gateway's list of engines is malformed: {error!r}.") from error

    async def ensure(self, engines: Mapping[str, EngineRegistration]) -> dict[str, bool]:
        """Register the engines that the gateway lacks or has at another address.

        Returns:
            Engine name -> whether the gateway has it now. Failures are logged.
        """
        if self.gateway is None or not engines:
            return dict.fromkeys(engines, False)
        try:
            known = await self.known()
        except ServiceError as error:
            log.warning("%s", error)
            return dict.fromkeys(engines, False)
        result = {}
        for name, engine in engines.items():
            result[name] = known.get(name) == engine.base_url or await self.try_register(
                name, engine
            )
        return result

    async def try_register(self, name: str, engine: EngineRegistration) -> bool:
        """Like :meth:`register`, but a failure is logged and False is returned."""
        try:
            await self.register(name, engine)
        except ServiceError as error:
            log.warning("%s", error)
            return False
        log.info("engine %s registered with the gateway at %s", name, self.gateway)
        return True

    async def _call(self, method: str, path: str, body: Any = None) -> Answer:
        gateway = self.gateway
        if gateway is None:
            raise ServiceError("no gateway runs.", hint="Start one: `sage up`.")
        try:
            key = read_master_key()
        except SettingsError as error:
            raise ServiceError(error.message, hint=error.hint) from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        content = None if body is None else orjson.dumps(body)
        try:
            return await http_request.request(
                method, gateway + path, headers=headers, body=content, timeout_s=_TIMEOUT_S
            )
        except RequestError as error:
            raise ServiceError(
                f"the gateway at {gateway} does not answer: {error}.",
                hint="See `sage status` and `sage logs gateway`.",
            ) from error


def _refused(what: str, answer: Answer) -> ServiceError:
    return ServiceError(
        f"the gateway refused {what}: status {answer.status}, {answer.text[:300]}",
        hint="It runs with another master key than ours." if answer.status == 401 else None,
    )
