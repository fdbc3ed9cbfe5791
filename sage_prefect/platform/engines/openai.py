"""Anything that speaks the OpenAI protocol and that somebody else runs."""

from __future__ import annotations

import urllib.parse

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform.engines.base import (
    Availability,
    EngineDriver,
    EngineOptions,
    service_name,
)
from sage_prefect.platform.models import CATALOG
from sage_prefect.platform.service import EngineRegistration, Probe, ServedModel, ServiceSpec


class OpenAIDriver(EngineDriver):
    """An external server: starting it is a probe of ``GET /models``, stopping it forgets it."""

    name = "openai"
    modes = frozenset({"chat", "embedding"})

    def availability(self) -> Availability:
        """Always: nothing runs here."""
        return Availability(True, "external servers")

    def service(
        self,
        model: str,
        *,
        name: str | None = None,
        port: int | None = None,
        options: EngineOptions | None = None,
    ) -> ServiceSpec:
        """A service without a process; ``options.base_url`` says where it is (with ``/v1``).

        Raises:
            ServiceError: no or a malformed base_url, or a port was given.
        """
        options = options or EngineOptions()
        if port is not None:
            raise ServiceError(
                f"an external engine takes no port (got {port}).",
                hint="Its port stands in --base-url.",
            )
        url = (options.base_url or "").rstrip("/")
        parsed = urllib.parse.urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise ServiceError(
                f"base_url {options.base_url!r} of the external engine is not an http(s) URL.",
                hint="For example: --base-url http://127.0.0.1:11434/v1",
            )
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        mode = CATALOG[model].mode if model in CATALOG else "chat"
        return ServiceSpec(
            name=name or service_name(model),
            kind="engine",
            ready=Probe(kind="http", target=f"{url}/models", headers=headers, timeout_s=10.0),
            live_period_s=15.0,
            probe_period_s=1.0,
            start_timeout_s=min(options.start_timeout_s, 30.0),
            endpoints={},
            engine=EngineRegistration(
                base_url=url,
                models=(ServedModel(name=model, mode=mode),),
                driver=self.name,
                device="external",
                max_concurrency=options.slots,
                api_key=options.api_key,
                upstream_model=options.upstream_model,
            ),
        )
