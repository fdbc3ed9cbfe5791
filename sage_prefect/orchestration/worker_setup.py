"""Dask preload: runs in each worker process before its first task."""

from __future__ import annotations

import logging
import os
from typing import Any

from sage_prefect.common.errors import ClusterError

# These pour connection details at INFO once Prefect is imported (distributed) or by habit (httpx).
NOISY = ("distributed", "httpx", "httpcore", "bokeh", "tornado.application")


def quiet() -> None:
    """Let the libraries below us say only what went wrong."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


async def dask_setup(worker: Any) -> None:
    """Refuse to run without a Prefect server: a worker would silently start its own (measured:
    about 240 MB each, and locks on one SQLite file).

    Raises:
        ClusterError: ``PREFECT_API_URL`` is not set.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ClusterError(
            f"worker {worker.name!r} has no PREFECT_API_URL.",
            hint="Start it through `sage up`, or set the variable before `dask worker`.",
        )
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    # These take seconds: now, rather than in the first task.
    import sage_prefect.kernel.stage
    import sage_prefect.orchestration.task_runner  # noqa: F401

    quiet()
