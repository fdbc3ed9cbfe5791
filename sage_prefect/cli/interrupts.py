"""What a command that started services does when it is interrupted.

Every such command holds a shared lock while it works. On Ctrl-C or SIGTERM it stops the services
that it started itself, unless another command still holds the lock, that is, uses them.
"""

from __future__ import annotations

import fcntl
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from sage_prefect.cli.console import console
from sage_prefect.common.paths import state_dir


@dataclass
class Started:
    """The services that this command started."""

    names: list[str] = field(default_factory=list)


@contextmanager
def stopping_on_interrupt() -> Iterator[Started]:
    """Run the body; on an interrupt stop what it started, then let the interrupt go on."""
    started = Started()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield started
        except KeyboardInterrupt:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # Tasks that the interrupt tore would be reported once more when they are collected.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            _clean_up(started, lock)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _clean_up(started: Started, lock: IO[str]) -> None:
    from sage_prefect.platform.supervisor_client import SupervisorClient, SupervisorNotRunning

    try:
        client = SupervisorClient.connect(start=False)
    except SupervisorNotRunning:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.print("interrupted; the services stay up: another sage command uses them")
        return
    known = {state.name for state in client.list()}
    mine = [name for name in started.names if name in known]
    if not mine:
        return
    console.print(f"interrupted; stopping what this command started: {', '.join(mine)}")
    if known <= set(mine):
        client.shutdown()
    else:
        client.stop(*mine)
