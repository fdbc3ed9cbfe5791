"""The local Dask cluster as a foreground process, for the supervisor.

``python -m sage_prefect.orchestration.cluster_process --ready-file F`` writes the scheduler's
address to F when all workers are there, ends without a trace at SIGTERM, and exits with status 1
when a worker cannot be kept.

Worker processes import this module when they start (multiprocessing spawn): it stays light.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sage_prefect.common.errors import ClusterError, SageError

_START_LIMIT_S = 120.0
# A killed worker is back within seconds (a minute on a busy machine); one that stays away longer
# cannot be kept.
_ABSENCE_LIMIT_S = 180.0
_NANNY_LIMIT_S = 3.0
_WATCH_PERIOD_S = 1.0

log = logging.getLogger("sage.cluster")


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT (status 0) or until a worker is lost for good (status 1)."""
    parser = argparse.ArgumentParser(prog="cluster_process", description=__doc__)
    parser.add_argument("--config", type=Path, default=None, help="A cluster.yaml.")
    parser.add_argument("--scheduler-port", type=int, default=0)
    parser.add_argument("--dashboard-port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=None, help="For spilled data.")
    arguments = parser.parse_args(argv)
    from sage_prefect.common.logs import configure_logging

    configure_logging("INFO")
    # Workers set up Dask's logging when they import it, before their nanny can configure them.
    os.environ["DASK_LOGGING__DISTRIBUTED"] = "warning"
    try:
        asyncio.run(serve(arguments))
    except SageError as error:
        log.error("%s", error)
        return 1
    return 0


async def serve(arguments: argparse.Namespace) -> None:
    """Start the cluster, watch it, and close it when told to.

    Raises:
        ClusterError: the workers did not come, or one of them stayed away.
        SettingsError: the cluster file is wrong.
    """
    from sage_prefect.common.paths import atomic_write, cache_dir
    from sage_prefect.orchestration.clusters import local_cluster
    from sage_prefect.platform.cluster_spec import load_cluster_spec

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    arguments.ready_file.unlink(missing_ok=True)
    spec = load_cluster_spec(arguments.config)
    cluster = local_cluster(
        spec,
        api_url=os.environ.get("PREFECT_API_URL", ""),
        folder=arguments.folder or cache_dir() / "dask",
        scheduler_port=arguments.scheduler_port,
        dashboard_port=arguments.dashboard_port,
        asynchronous=True,
    )
    started = False
    try:
        async with _stoppable(stop, _started(cluster, spec.workers)) as started:
            if not started:
                return
            atomic_write(arguments.ready_file, cluster.scheduler_address.encode())
            log.info(
                "cluster ready",
                extra={"fields": {"address": cluster.scheduler_address, "workers": spec.workers}},
            )
            await _watch(cluster, spec.workers, stop)
    finally:
        arguments.ready_file.unlink(missing_ok=True)
        if started:
            await cluster.close()
        else:
            _end_children()  # Dask cannot close a cluster that is still starting
        log.info("cluster closed")


@contextlib.asynccontextmanager
async def _stoppable(stop: asyncio.Event, work: Any) -> Any:
    """Wait for ``work`` or for ``stop``; yields whether the work was done."""
    waiting = asyncio.ensure_future(stop.wait())
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({waiting, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        yield working.done()
    finally:
        for task in (waiting, working):
            task.cancel()
        await asyncio.gather(waiting, working, return_exceptions=True)


async def _started(cluster: Any, workers: int) -> None:
    await cluster
    try:
        await cluster.wait_for_workers(workers, timeout=_START_LIMIT_S)
    except (TimeoutError, asyncio.TimeoutError) as error:
        there = len(cluster.scheduler_info["workers"])
        raise ClusterError(
            f"{workers - there} of {workers} Dask worker(s) did not start within "
            f"{_START_LIMIT_S:g} s.",
            hint="The lines above this one say why.",
        ) from error


def _end_children() -> None:
    import psutil

    ended = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # multiprocessing's own helper ends with this process.
            if not any("resource_tracker" in part for part in child.cmdline()):
                child.kill()
                ended.append(child)
    psutil.wait_procs(ended, timeout=10)


async def _watch(cluster: Any, workers: int, stop: asyncio.Event) -> None:
    missing_since: dict[str, float] = {}
    while not stop.is_set():
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), _WATCH_PERIOD_S)
        there = {str(worker.name) for worker in cluster.scheduler.workers.values()}
        now = time.monotonic()
        for name in map(str, cluster.worker_spec):
            if name in there:
                if missing_since.pop(name, None) is not None:
                    log.info("worker is back", extra={"fields": {"name": name}})
                continue
            if name not in missing_since:
                log.warning("worker lost, another is started", extra={"fields": {"name": name}})
            absent_s = now - missing_since.setdefault(name, now)
            if absent_s > _ABSENCE_LIMIT_S:
                raise ClusterError(f"Dask worker {name!r} cannot be kept running.")
            if absent_s > _NANNY_LIMIT_S and not _starting(cluster.workers.get(name)):
                # A nanny that could not start its worker in time has closed itself.
                if (nanny := cluster.workers.pop(name, None)) is not None:
                    await nanny.close()
                cluster.scale(workers)


def _starting(nanny: Any) -> bool:
    """Whether the nanny has a process that may become the worker."""
    import psutil

    return nanny is not None and nanny.pid is not None and psutil.pid_exists(nanny.pid)


if __name__ == "__main__":
    sys.exit(main())
