"""Versions of a published folder: built aside, made current by one atomic step.

::

    <root>/CURRENT            name of the current generation
    <root>/gen-000002/...     complete and never changed
    <root>/.staging/...       partitions of runs that are not committed yet
    <root>/.lock              held while one process commits

A reader that holds an old generation keeps it: its files are memory-mapped.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sage_prefect.common.paths import atomic_write
from sage_prefect.middleware.staging import sync_file, sync_folder

_GENERATION = re.compile(r"gen-(\d{6,})")
_Read = TypeVar("_Read")


class Generations:
    """The versions under ``root``.

    Args:
        root: the published folder.
        keep: generations that stay, the current one included.
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root = root
        self.keep = max(1, keep)

    @property
    def staging(self) -> Path:
        """Where partitions are staged."""
        return self.root / ".staging"

    def current(self) -> Path | None:
        """The current generation's folder, or None."""
        try:
            name = (self.root / "CURRENT").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        return self.root / name if _GENERATION.fullmatch(name) else None

    def read(self, reader: Callable[[Path], _Read], tries: int = 5) -> _Read | None:
        """``reader`` of the current generation; None when there is none.

        Between the look at ``CURRENT`` and the opening of its files, commits may have removed that
        generation: then the next one is read.
        """
        for attempt in range(tries):
            folder = self.current()
            if folder is None:
                return None
            try:
                return reader(folder)
            except FileNotFoundError:
                if attempt == tries - 1 or folder == self.current():
                    raise
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait for, and hold, the right to commit."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def publish(self, build: Callable[[Path], None]) -> Path:
        """Let ``build`` fill a new folder, then make it current. Call it under :meth:`locked`.

        An error, or the end of the process, at any point leaves the current generation as it was.
        """
        number = max((n for n, _ in self._all()), default=0) + 1
        building = Path(tempfile.mkdtemp(dir=self.root, prefix=".building-"))
        try:
            build(building)
            for file in building.iterdir():
                sync_file(file)
            sync_folder(building)
            building.chmod(0o755)
            folder = self.root / f"gen-{number:06d}"
            os.rename(building, folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync_folder(self.root)
        atomic_write(self.root / "CURRENT", f"{folder.name}\n".encode("ascii"))
        self._retire(folder)
        return folder

    def _retire(self, current: Path) -> None:
        older = sorted(entry for entry in self._all() if entry[1] != current)
        for _, folder in older[: max(0, len(older) - (self.keep - 1))]:
            shutil.rmtree(folder)
        # What a commit that was killed left; no other commit runs now.
        for folder in self.root.glob(".building-*"):
            shutil.rmtree(folder)

    def _all(self) -> list[tuple[int, Path]]:
        found = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            match = _GENERATION.fullmatch(folder.name)
            if match:
                found.append((int(match[1]), folder))
        return found
