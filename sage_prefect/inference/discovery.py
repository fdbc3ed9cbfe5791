"""Where the server is: what the caller says, the environment, or the gateway that runs here.

In this order: an explicit URL; ``SAGE_BASE_URL``; the gateway in the endpoints registry; a gateway
on its default port. The last two are only believed when their ``/health`` answers.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
import orjson

from sage_prefect.common import endpoints
from sage_prefect.common.errors import EngineUnavailable
from sage_prefect.common.keys import read_master_key
from sage_prefect.common.ports import SagePorts
from sage_prefect.inference.config import (
    ClientConfig,
    default_timeout_s,
    is_loopback,
)

PROBE_TIMEOUT_S = 2.0


def configure(
    base_url: str | None, api_key: str | None, timeout_s: float | None, **options: Any
) -> ClientConfig | None:
    """The configuration when no search is needed, None when the gateway must be looked for."""
    url = base_url or os.environ.get("SAGE_BASE_URL") or None
    return None if url is None else found(url, api_key, timeout_s, **options)


def found(url: str, api_key: str | None, timeout_s: float | None, **options: Any) -> ClientConfig:
    """The configuration for a server at ``url``, with the key that belongs there."""
    key = api_key or os.environ.get("SAGE_API_KEY", "").strip() or None
    if key is None and is_loopback(url):
        # The key of this machine's own gateway; no other host must ever see it.
        key = read_master_key()
    timeout = default_timeout_s() if timeout_s is None else timeout_s
    return ClientConfig(base_url=url, api_key=key, timeout_s=timeout, **options)


def candidates() -> list[str]:
    """Where a gateway may listen on this machine, the likeliest first."""
    urls = [endpoints.lookup("gateway"), f"http://127.0.0.1:{SagePorts.GATEWAY.resolve()}"]
    return list(dict.fromkeys(url.rstrip("/") for url in urls if url))


def is_gateway(response: httpx.Response) -> bool:
    """Whether an answer of ``/health`` comes from a gateway that serves.

    Another program may listen on the default port; it answers with a redirect, an error or a page.
    """
    if response.status_code != 200:
        return False
    try:
        body = orjson.loads(response.content or b"{}")
    except orjson.JSONDecodeError:
        return False
    if not isinstance(body, dict):
        return False
    service = body.get("service")
    return service is None or (isinstance(service, str) and "gateway" in service)


def none_found(tried: list[str]) -> EngineUnavailable:
    """The error when nothing answers."""
    return EngineUnavailable(
        f"no gateway answers on this machine (tried {', '.join(tried)}).",
        hint="Start one with `sage up`, or name a server: base_url= or SAGE_BASE_URL.",
    )


def find_gateway() -> str:
    """The URL of the gateway that runs here.

    Raises:
        EngineUnavailable: none does.
    """
    tried = candidates()
    with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=False) as probe:
        for url in tried:
            try:
                if is_gateway(probe.get(f"{url}/health")):
                    return url
            except httpx.TransportError:
                continue
    raise none_found(tried)


async def find_gateway_async() -> str:
    """:func:`find_gateway` for an event loop."""
    tried = candidates()
    async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as probe:
        for url in tried:
            try:
                if is_gateway(await probe.get(f"{url}/health")):
                    return url
            except httpx.TransportError:
                continue
    raise none_found(tried)
