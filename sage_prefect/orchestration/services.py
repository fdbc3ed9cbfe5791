"""Prefect server, Dask cluster and Prefect worker as services of the supervisor.

This module says what to run; it imports neither Prefect nor Dask, so that the CLI stays quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import cache_dir, data_dir, state_dir
from sage_prefect.common.ports import SagePorts
from sage_prefect.common.settings import Settings, load_settings
from sage_prefect.platform.service import PortClaim, Probe, ServiceSpec

PREFECT = "prefect"
DASK = "dask"
WORKER = "prefect-worker"
DASHBOARD = "dask-dashboard"
#: The work pool that prefect.yaml deploys to and :func:`prefect_worker` serves.
WORK_POOL = "sage-process"

_LOCAL = "127.0.0.1"


def prefect_server(port: int | None = None) -> ServiceSpec:
    """One Prefect server with its UI, on loopback; its database is in our data directory.

    Endpoint ``prefect``: the API's URL, ``http://127.0.0.1:4200/api``; the UI is one level up.

    Args:
        port: an error if it is taken; None: 4200 or the next free one.
    """
    url = f"http://{_LOCAL}:{{port}}/api"
    return ServiceSpec(
        name=PREFECT,
        kind="prefect",
        command=(
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", _LOCAL, "--port", "{port}"),
        ),
        env={
            **_isolated(),
            "PREFECT_API_URL": url,
            "PREFECT_UI_API_URL": url,
            "PREFECT_UI_ENABLED": "true",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            # On a busy machine a write waits longer for SQLite than the default 5 s (then: 503).
            "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        },
        ports=(PortClaim.of(SagePorts.PREFECT, port),),
        ready=Probe(kind="http", target=f"{url}/health", matches="true"),
        # 12 to 28 s of imports and migrations were measured on two busy cores.
        start_timeout_s=240.0,
        stop_timeout_s=15.0,
        endpoints={PREFECT: url},
    )


def dask_cluster(config: Path | None = None, api_url: str | None = None) -> ServiceSpec:
    """The local Dask cluster of a ``cluster.yaml``, on loopback.

    Endpoints ``dask``: the scheduler's ``tcp://`` address; ``dask-dashboard``.

    Args:
        config: the file; None: the packaged default of one CPU and one GPU worker.
        api_url: the Prefect server that tasks report to; None: our service ``prefect``.
    """
    ready = state_dir() / "dask-cluster.address"
    command = [
        *(sys.executable, "-m", "sage_prefect.orchestration.cluster_process"),
        *("--scheduler-port", "{port.scheduler}", "--dashboard-port", "{port.dashboard}"),
        *("--ready-file", str(ready), "--folder", str(cache_dir() / "dask")),
    ]
    if config is not None:
        command += ["--config", str(config.absolute())]
    dashboard = f"http://{_LOCAL}:{{port.dashboard}}"
    return ServiceSpec(
        name=DASK,
        kind="dask",
        command=tuple(command),
        env={**_isolated(), "PREFECT_API_URL": api_url or f"{{endpoint.{PREFECT}}}"},
        ports=(
            PortClaim.of(SagePorts.DASK_SCHEDULER, name="scheduler"),
            PortClaim.of(SagePorts.DASK_DASHBOARD, name="dashboard"),
        ),
        ready=Probe(kind="file", target=str(ready)),
        live=Probe(kind="http", target=f"{dashboard}/health"),
        start_timeout_s=180.0,
        stop_timeout_s=20.0,
        endpoints={
            DASK: f"tcp://{_LOCAL}:{{port.scheduler}}",
            DASHBOARD: f"{dashboard}/status",
        },
        after=(PREFECT,) if api_url is None else (),
    )


def prefect_worker(pool: str = WORK_POOL, api_url: str | None = None) -> ServiceSpec:
    """A Prefect worker that runs deployments of ``pool`` in processes; makes the pool if needed.

    Args:
        api_url: as for :func:`dask_cluster`.
    """
    return ServiceSpec(
        name=WORKER,
        kind="prefect",
        command=(
            *(sys.executable, "-m", "prefect", "worker", "start", "--with-healthcheck"),
            *("--pool", pool, "--type", "process", "--name", "sage"),
        ),
        env={
            **_isolated(),
            "PREFECT_API_URL": api_url or f"{{endpoint.{PREFECT}}}",
            "PREFECT_WORKER_WEBSERVER_HOST": _LOCAL,
            "PREFECT_WORKER_WEBSERVER_PORT": "{port}",
            # Deployed flows run with this interpreter's packages.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        },
        ports=(PortClaim(name="health"),),
        ready=Probe(kind="http", target=f"http://{_LOCAL}:{{port}}/health"),
        start_timeout_s=120.0,
        stop_timeout_s=30.0,
        endpoints={},
        after=(PREFECT,) if api_url is None else (),
    )


def connect_env(settings: Settings | None = None) -> dict[str, str]:
    """Environment of a process that talks to the Prefect server of ``sage up``.

    Must be set before ``prefect`` is imported.

    Raises:
        ServiceError: no server runs, and the settings name none.
    """
    url = (settings or load_settings()).prefect.api_url or endpoints.lookup(PREFECT)
    if not url:
        raise ServiceError("no Prefect server runs.", hint="Start one with `sage up`.")
    return {**_isolated(), "PREFECT_API_URL": url}


def dask_address(settings: Settings | None = None) -> str | None:
    """Address of the Dask scheduler: of the settings, else of the running cluster, else None."""
    return (settings or load_settings()).cluster.address or endpoints.lookup(DASK)


def _isolated() -> dict[str, str]:
    """Our own Prefect home: profiles, keys and the database of the user's stay untouched."""
    home = data_dir() / "prefect"
    home.mkdir(parents=True, exist_ok=True)  # the server's database does not make its folder
    return {
        "PREFECT_HOME": str(home),
        # Without a server's URL, each process would silently start a server of its own.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # Telemetry logs errors on closed networks.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
