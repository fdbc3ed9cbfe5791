"""Log files of supervised services: one per service, rotated by size, read by their tail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import log_dir

ROTATE_AT_START_BYTES = 5 << 20
TRUNCATE_WHILE_RUNNING_BYTES = 64 << 20
KEPT = 3


def log_file(service: str) -> Path:
    """Where a service's output goes."""
    return log_dir() / f"{service}.log"


def open_log(service: str) -> IO[bytes]:
    """Open the log for appending; rotates it first when it is over 5 MiB.

    Raises:
        ServiceError: the file cannot be written (read-only directory, full disk).
    """
    file = log_file(service)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > ROTATE_AT_START_BYTES:
            _shift(file)
            file.rename(file.with_suffix(".log.1"))
        return file.open("ab", buffering=0)
    except OSError as error:
        raise ServiceError(
            f"cannot write log file {file}: {error.strerror}.",
            hint="Make room or make the directory writable, or set SAGE_HOME to another one.",
        ) from error


def trim_log(service: str, limit: int = TRUNCATE_WHILE_RUNNING_BYTES) -> bool:
    """Copy an oversized log of a running service away and empty it in place.

    The service writes in append mode, so it goes on at the new end. Lines written during the
    copy may be lost. Returns whether it was trimmed.
    """
    file = log_file(service)
    try:
        if file.stat().st_size <= limit:
            return False
    except FileNotFoundError:
        return False
    _shift(file)
    shutil.copyfile(file, file.with_suffix(".log.1"))
    os.truncate(file, 0)
    return True


def tail(service: str, lines: int = 20, *, since: int = 0) -> list[str]:
    """The last lines of a service's log, from byte ``since`` on; empty when there is none."""
    return tail_file(log_file(service), lines, since=since)


def tail_file(file: Path, lines: int, *, since: int = 0) -> list[str]:
    """The last lines of a file, read from its end."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            # 400 bytes a line is generous; longer lines only mean fewer of them.
            opened.seek(max(0, min(since, size), size - 400 * (lines + 1)))
            content = opened.read()
    except FileNotFoundError:
        return []
    return content.decode("utf-8", "replace").splitlines()[-lines:]


def _shift(file: Path) -> None:
    for number in range(KEPT - 1, 0, -1):
        older = file.with_suffix(f".log.{number}")
        if older.exists():
            older.rename(file.with_suffix(f".log.{number + 1}"))
