"""The folder of one run: ``results/<experiment>/<uid>/``.

``manifest.json``, ``packages.txt``, raw data as JSON lines, ``summary.json``, ``summary.md`` and
the logs of the servers that were started. All that a report shows is computed from these files.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from sage_bench.manifest import Manifest, validate
from sage_prefect.common.errors import BenchmarkError, CorruptFileError
from sage_prefect.common.paths import atomic_write

RESULTS_VARIABLE = "SAGE_RESULTS_DIR"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
REPORT = "summary.md"
MEASUREMENTS = "measurements"


def results_root(out: Path | None = None) -> Path:
    """Where results go: ``out``, else ``$SAGE_RESULTS_DIR``, else ``./results``."""
    return out or Path(os.environ.get(RESULTS_VARIABLE) or "results")


class ResultFolder:
    """Reads and writes the files of one run; made by :meth:`create`, found by :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, experiment: str, out: Path | None = None) -> ResultFolder:
        """A new, empty folder; its name sorts by start time.

        Raises:
            BenchmarkError: it cannot be made.
        """
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        path = results_root(out) / experiment / f"{stamp}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise BenchmarkError(
                f"cannot make the result folder {path}: {error}.",
                hint=f"Choose another with --out or {RESULTS_VARIABLE}.",
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> ResultFolder:
        """An existing folder.

        Raises:
            BenchmarkError: it is no result folder; lists those below it, if any.
        """
        if (path / MANIFEST).is_file():
            return cls(path)
        below = sorted(str(found.parent) for found in path.glob(f"**/{MANIFEST}"))
        near = f"Result folders below it: {', '.join(below[-8:])}." if below else None
        raise BenchmarkError(
            f"{path} is not a result folder (it holds no {MANIFEST}).",
            hint=near or "`sage bench run NAME` prints the folder that it makes.",
        )

    @property
    def uid(self) -> str:
        """The run's name."""
        return self.path.name

    def logs(self) -> Path:
        """Folder for the logs of started servers."""
        folder = self.path / "logs"
        folder.mkdir(exist_ok=True)
        return folder

    def write_manifest(self, content: Mapping[str, Any]) -> Manifest:
        """Check and write ``manifest.json``.

        Raises:
            CorruptFileError: a field is missing or wrong.
        """
        clean = orjson.loads(orjson.dumps(portable(content), default=str))
        manifest = validate(clean, f"manifest of {self.uid}")
        atomic_write(self.path / MANIFEST, _pretty(clean))
        return manifest

    def read_manifest(self) -> Manifest:
        """Read and check ``manifest.json``. Raises CorruptFileError."""
        return validate(_read_json(self.path / MANIFEST), str(self.path / MANIFEST))

    def append(self, stream: str, record: Mapping[str, Any]) -> None:
        """Add a record to ``<stream>.jsonl``: one write of the whole line, so that lines never mix
        and a killed run keeps all but at most its last one."""
        line = orjson.dumps(portable(record), default=str, option=orjson.OPT_APPEND_NEWLINE)
        fd = os.open(self.path / f"{stream}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
        if written != len(line):
            raise BenchmarkError(
                f"only {written} of {len(line)} bytes written to {stream}.jsonl in {self.path}.",
                hint="The disk may be full.",
            )

    def read(self, stream: str) -> Iterator[dict[str, Any]]:
        """The records of ``<stream>.jsonl``.

        Raises:
            CorruptFileError: a line is not JSON, or the file is not there.
        """
        file = self.path / f"{stream}.jsonl"
        try:
            lines = file.read_bytes().splitlines()
        except FileNotFoundError:
            raise CorruptFileError(
                f"{file} is missing.", hint="The run ended before it measured anything."
            ) from None
        for number, line in enumerate(lines, 1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise CorruptFileError(
                    f"{file}, line {number} is not JSON: {error}.",
                    hint="If it is the last line the run was killed while writing; delete it.",
                ) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        atomic_write(self.path / name, _pretty(portable(content)))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file. Raises CorruptFileError when it is missing or damaged."""
        return _read_json(self.path / name)

    def write_text(self, name: str, content: str) -> None:
        """Write a text file."""
        atomic_write(self.path / name, str(portable(content)).encode())


def portable(value: Any) -> Any:
    """``value`` with this machine's folders replaced by names, so that results can be published."""
    if isinstance(value, str):
        for pattern, name in _private_folders():
            value = pattern.sub(name, value)
        return value
    if isinstance(value, Path):
        return portable(str(value))
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [portable(item) for item in value]
    return value


def _private_folders() -> list[tuple[re.Pattern[str], str]]:
    # In this order: an environment inside the working folder is named as an environment.
    named = [
        (sys.prefix, "<venv>"),
        (sys.base_prefix, "<python>"),
        (os.getcwd(), "."),
        (str(Path.home()), "~"),
        (tempfile.gettempdir(), "<tmp>"),
    ]
    return [
        (re.compile(rf"(?<![\w.~>/-]){re.escape(folder)}(?![\w.-])"), name)
        for folder, name in named
        if len(folder) > 1
    ]


def _pretty(content: Any) -> bytes:
    return orjson.dumps(
        content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(file.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError) as error:
        raise CorruptFileError(
            f"{file} is missing or damaged: {error}.",
            hint="The run may have been interrupted; run it again.",
        ) from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{file} holds a {type(content).__name__}, not an object.")
    return content
