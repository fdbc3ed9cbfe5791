"""The supervisor: one process per state directory that owns all services of this user.

``python -m sage_prefect.platform.supervisor`` runs it in the foreground; clients start it in the
background when they need it (:mod:`sage_prefect.platform.supervisor_client`). It is one thread
with an event loop, because the kernel's parent-death signal hangs on the thread that spawned.

* Only one runs: it holds a lock on ``supervisor.lock`` for its life.
* It first ends what a former supervisor left behind, known by marker, session and start time.
* It ends by itself when nothing has run and nobody was connected for ``--idle-exit`` seconds.
* SIGTERM and SIGINT stop all services, then the supervisor.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.logs import configure_logging
from sage_prefect.common.paths import state_dir
from sage_prefect.platform import registry
from sage_prefect.platform.control_server import ControlServer
from sage_prefect.platform.gpus import GpuLedger, list_gpus
from sage_prefect.platform.processes import become_subreaper
from sage_prefect.platform.service_manager import ServiceManager

log = logging.getLogger(__name__)

_TICK_S = 5.0


def take_lock() -> IO[str] | None:
    """The lock that makes this the only supervisor of its state directory; None when it is not."""
    file = (registry.require_state_dir() / "supervisor.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


async def serve(idle_exit_s: float) -> None:
    """Run a supervisor until it is told to stop or has been idle for ``idle_exit_s`` seconds.

    Raises:
        ServiceError: the registry is damaged, or the control socket cannot be bound.
    """
    become_subreaper()
    loop = asyncio.get_running_loop()
    stopping: set[asyncio.Task[None]] = set()
    manager = ServiceManager(GpuLedger(list_gpus()))
    manager.adopt_former()

    def on_signal() -> None:
        log.info("told to stop")
        if not stopping:
            stopping.add(loop.create_task(manager.shut_down(log.info)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with ControlServer(manager) as server:
        log.info("supervisor ready, pid %d, socket %s", os.getpid(), server.path)
        idle_since = loop.time()
        while not manager.shut.is_set():
            await _wait(manager.shut, min(_TICK_S, max(idle_exit_s / 2, 0.05)))
            await manager.tick()
            if manager.busy or server.connections:
                idle_since = loop.time()
            # A client that just said hello is about to ask for something.
            elif loop.time() - max(idle_since, server.last_used) >= idle_exit_s:
                log.info("idle for %g s: leaving", idle_exit_s)
                break
        await asyncio.gather(*stopping)
        await server.finish()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the supervisor in the foreground; 0 also when another one runs already."""
    parser = argparse.ArgumentParser(prog="sage-supervisor", description=__doc__)
    parser.add_argument("--idle-exit", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        lock = take_lock()
        if lock is None:
            log.info("another supervisor runs for %s", state_dir())
            return 0
        with lock:
            asyncio.run(serve(options.idle_exit))
    except ServiceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
