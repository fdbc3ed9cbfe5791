"""A local Dask cluster of differently tagged workers, out of a ``cluster.yaml``.

Everything listens on 127.0.0.1 only: whoever reaches a Dask scheduler runs code as its user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from sage_prefect.common.errors import ClusterError
from sage_prefect.platform.cluster_spec import ClusterSpec

LOOPBACK = "127.0.0.1"
_START_LIMIT_S = 120

# Tasks are the parallelism: a BLAS that takes all cores in each of them only slows the others.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def worker_specs(
    spec: ClusterSpec,
    *,
    devices: Sequence[int],
    machine_memory: int,
    environ: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """One entry per worker process: name -> options of its nanny.

    Args:
        devices: the GPUs of this machine. A worker with n GPU slots sees the next n of them
            (going round); without GPUs the slots are a tag only.
        machine_memory: bytes; shared equally by workers whose pool says nothing.
        environ: variables that all workers get; must hold ``PREFECT_API_URL``.

    Raises:
        ClusterError: ``environ`` names no Prefect server.
    """
    if not environ.get("PREFECT_API_URL"):
        raise ClusterError(
            "the cluster's workers need PREFECT_API_URL, which is not set.",
            hint="Start the Prefect server first (`sage up` does), then the cluster.",
        )
    share = machine_memory // max(spec.workers, 1)
    made: dict[str, dict[str, Any]] = {}
    next_device = 0
    for pool in spec.pools:
        for number in range(pool.count):
            seen: list[int] = []
            if pool.gpu and devices:
                wanted = min(max(1, round(pool.gpu)), len(devices))
                seen = [devices[(next_device + n) % len(devices)] for n in range(wanted)]
                next_device += wanted
            env = {
                **_ONE_THREAD,
                "CUDA_VISIBLE_DEVICES": ",".join(str(device) for device in seen),
                "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
                # "Finished in state Completed" goes to the Prefect UI; on a console it costs 7 ms.
                "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
                **environ,
                **pool.env,
            }
            made[f"{pool.name}-{number}"] = {
                "host": LOOPBACK,
                "nthreads": pool.nthreads,
                "resources": pool.counters(share),
                "memory_limit": pool.memory or share,
                "env": env,
                "preload": ["sage_prefect.orchestration.worker_setup"],
                "dashboard_address": f"{LOOPBACK}:0",
                "death_timeout": _START_LIMIT_S,
            }
    return made


def local_cluster(
    spec: ClusterSpec,
    *,
    api_url: str,
    folder: Path,
    scheduler_port: int = 0,
    dashboard_port: int = 0,
    asynchronous: bool = False,
) -> Any:
    """A ``distributed.SpecCluster`` of nannies; await it, or use it as a context manager.

    Args:
        api_url: the Prefect server that tasks report to.
        folder: for what workers spill to disk.
        scheduler_port, dashboard_port: 0: any free port.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    from sage_prefect.orchestration.worker_setup import quiet
    from sage_prefect.platform.gpus import list_gpus

    quiet()
    environ = {"PREFECT_API_URL": api_url}
    if key := os.environ.get("PREFECT_API_AUTH_STRING"):
        environ["PREFECT_API_AUTH_STRING"] = key
    options = worker_specs(
        spec,
        devices=[gpu.index for gpu in list_gpus()],
        machine_memory=psutil.virtual_memory().total,
        environ=environ,
    )
    folder.mkdir(parents=True, exist_ok=True)
    origins = [f"{host}:{dashboard_port}" for host in (LOOPBACK, "localhost")]
    dask.config.set(
        {
            "temporary-directory": str(folder),
            # Dask drops a worker for good that is absent 15 s after it was lost, even if it was
            # back in between. cluster_process.py watches over them.
            "distributed.deploy.lost-worker-timeout": "1 hour",
            # A page of another site, open in the user's browser, must not read the dashboard.
            "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": origins,
        }
    )
    return SpecCluster(
        scheduler={
            "cls": Scheduler,
            "options": {
                "host": LOOPBACK,
                "port": scheduler_port,
                "dashboard_address": f"{LOOPBACK}:{dashboard_port}",
            },
        },
        workers={name: {"cls": Nanny, "options": each} for name, each in options.items()},
        asynchronous=asynchronous,
        silence_logs=False,
        name="sage",
    )
