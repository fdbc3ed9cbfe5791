"""XDG base directories of SAGE (https://specifications.freedesktop.org/basedir-spec).

``SAGE_HOME`` moves all four under one folder, which is what tests and containers want.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def _base(variable: str, fallback: str, leaf: str) -> Path:
    home = os.environ.get("SAGE_HOME")
    if home:
        return Path(home).expanduser().absolute() / leaf
    value = os.environ.get(variable, "")
    # The specification says that a relative path is to be ignored.
    root = Path(value) if value and Path(value).is_absolute() else Path.home() / fallback
    return root / "sage"


def config_dir() -> Path:
    """Settings: ``config.yaml``, the key file."""
    return _base("XDG_CONFIG_HOME", ".config", "config")


def data_dir() -> Path:
    """What the user would miss: vector indexes, results, models pulled from a hub."""
    return _base("XDG_DATA_HOME", ".local/share", "data")


def state_dir() -> Path:
    """What a restart may need: service registry, logs, commit logs."""
    return _base("XDG_STATE_HOME", ".local/state", "state")


def cache_dir() -> Path:
    """What can be made again."""
    return _base("XDG_CACHE_HOME", ".cache", "cache")


def log_dir() -> Path:
    """Log files of supervised services."""
    return state_dir() / "logs"


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` so that a reader, or a crash, sees the old file or the new one, never a part.

    Temporary file in the same folder, fsync, rename, fsync of the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
