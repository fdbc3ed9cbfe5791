"""The commit log's storage in files: one small file per finished partition, written atomically."""

from __future__ import annotations

import re
import time
from pathlib import Path

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.common.paths import atomic_write, state_dir

_KEY = re.compile(r"^[0-9a-f]{8,128}$")
_KIND = re.compile(r"^[a-z]+$")


class FileRunStore:
    """Keyed bytes under a folder (default: ``runs/`` in the state directory).

    Several processes may use one folder: writes are atomic renames, and one key always means the
    same content.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_dir() / "runs"

    def get(self, kind: str, key: str) -> bytes | None:
        """The bytes under ``kind/key``, or None."""
        try:
            return self._path(kind, key).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, kind: str, key: str, data: bytes) -> None:
        """Store atomically; a second put of the same key replaces."""
        atomic_write(self._path(kind, key), data)

    def delete(self, kind: str, key: str) -> None:
        """Forget; unknown keys are fine."""
        self._path(kind, key).unlink(missing_ok=True)

    def expire(self, older_than_s: float, *, now: float | None = None) -> int:
        """Delete records older than that; returns how many. Retention: the CLI's cleanup."""
        limit = (time.time() if now is None else now) - older_than_s
        removed = 0
        for path in self.folder.glob("*/*/*.json"):
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, kind: str, key: str) -> Path:
        if not _KIND.match(kind) or not _KEY.match(key):
            raise CorruptFileError(f"{kind!r}/{key!r} is no key of the run store.")
        return self.folder / kind / key[:2] / f"{key}.json"
