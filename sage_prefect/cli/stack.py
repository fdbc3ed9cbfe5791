"""The services that ``sage up`` and ``sage demo`` run, made from the settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from sage_prefect.common import endpoints
from sage_prefect.common.keys import ensure_master_key
from sage_prefect.common.paths import atomic_write, state_dir
from sage_prefect.common.ports import SagePorts
from sage_prefect.common.settings import Settings
from sage_prefect.platform.service import PortClaim, Probe, ServiceSpec

GATEWAY = "gateway"


def stack_specs(settings: Settings, *, worker: bool = False) -> list[ServiceSpec]:
    """All services of the local stack: Prefect server, Dask cluster, engines, gateway.

    What the settings say exists elsewhere (``prefect.api_url``, ``cluster.address``) is left out.

    Raises:
        ModelNotFoundError: a model is not installed.
        ServiceError: an engine cannot run here.
    """
    from sage_prefect.orchestration import services
    from sage_prefect.platform.engines.base import EngineOptions
    from sage_prefect.platform.engines.choice import embedding_service, llm_service

    engines = settings.engines
    options = EngineOptions(
        slots=engines.llm_slots,
        context=engines.llm_context,
        device=engines.device,
        start_timeout_s=engines.start_timeout_s,
    )
    specs = [
        gateway_spec(settings),
        llm_service(engines.llm, engines.llm_engine, options=options),
        embedding_service(engines.embedding, options=options),
    ]
    api_url = settings.prefect.api_url
    if api_url is None:
        specs.insert(0, services.prefect_server(port=settings.prefect.port))
    if settings.cluster.address is None:
        specs.append(services.dask_cluster(config=settings.cluster.config, api_url=api_url))
    if worker:
        specs.append(services.prefect_worker(api_url=api_url))
    return specs


def gateway_spec(settings: Settings) -> ServiceSpec:
    """The gateway as a supervised service; engines register with it as they become ready."""
    key = ensure_master_key()
    del key  # made now, so that the gateway and every engine registration find it
    gateway = settings.gateway
    config = gateway.config.absolute() if gateway.config else generated_config(settings)
    command = (
        *(sys.executable, "-m", "sage_gateway"),
        *("--config", str(config), "--host", gateway.host, "--port", "{port}"),
        *(("--record", str(gateway.record.absolute())) if gateway.record else ()),
    )
    local = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host
    return ServiceSpec(
        name=GATEWAY,
        kind="gateway",
        command=command,
        ports=(PortClaim.of(SagePorts.GATEWAY, gateway.port, host=gateway.host),),
        ready=Probe(kind="http", target=f"http://{local}:{{port}}/health"),
        endpoints={GATEWAY: f"http://{local}:{{port}}"},
        start_timeout_s=60.0,
        stop_timeout_s=35.0,  # it finishes what is in flight first
    )


def generated_config(settings: Settings) -> Path:
    """A gateway.yaml without static engines, in the state directory."""
    content = {"model_list": [], "router_settings": {"routing_strategy": settings.gateway.policy}}
    path = state_dir() / "gateway.yaml"
    text = "# Written by `sage up`; engines register themselves.\n" + yaml.safe_dump(content)
    atomic_write(path, text.encode())
    return path


def addresses() -> dict[str, str]:
    """What a person may want to open, by label."""
    found = endpoints.read_all()
    shown: dict[str, str] = {}
    if "prefect" in found:
        # The API ends in /api; the UI is served beside it.
        shown["Prefect UI"] = re.sub(r"/api/?$", "", found["prefect"])
    if GATEWAY in found:
        shown["gateway"] = f"{found[GATEWAY]}/v1"
    if "dask-dashboard" in found:
        shown["Dask dashboard"] = found["dask-dashboard"]
    return shown
