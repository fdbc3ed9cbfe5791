"""``ReadFiles``: documents and tables from the file system."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from sage_prefect.common.errors import EmptySourceError, GraphError, RecordError
from sage_prefect.kernel.source import Source, SourcePart
from sage_prefect.middleware.documents import DOCUMENTS, SCHEMA, read_document
from sage_prefect.middleware.tables import TABLES, peek_columns, ranges, read_table


class ReadFiles(Source):
    """Read files by their suffix.

    =============================================  ==============================================
    ``.md .rst .html .htm .txt``, others named     one row: ``source`` (path), ``title``, ``text``
    ``.pdf``                                       one row per page: ``source`` is ``path#page=3``
    ``.jsonl .ndjson .csv .tsv .parquet``          their rows and columns; and ``source``
                                                   (``path:3``) unless they have a column of that
                                                   name
    =============================================  ==============================================

    A file is a part: ``on_error="dead_letter"`` on the source sets one aside that cannot be read.
    Paths in ``source`` are relative to the working directory where they lie below it.

    Args:
        pattern: a path, a glob (``docs/**/*.md``), a folder (all supported files below it, hidden
            ones left out), or a list of these. Files named or matched are read whatever their
            suffix: unknown ones as plain text.
        encoding: of text files; None: byte order mark, UTF-8, else Windows-1252 if it looks like
            text.
        rows_per_part: cut JSON lines and Parquet files into parts of so many rows, so that one file
            fills several partitions; None: a file is one part.
        content_hash: recognise unchanged files by their content, not by size and time.

    Raises:
        EmptySourceError: nothing matches; names pattern and working directory (when the run
            starts).
        RecordError: a file is unreadable, binary, empty, or has a broken line (when it is read).
    """

    name = "read-files"
    # Mostly what follows: a kilobyte of text is about one chunk to embed.
    weight_cost_s = 5e-6

    def __init__(
        self,
        pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        encoding: str | None = None,
        rows_per_part: int | None = None,
        content_hash: bool = False,
    ) -> None:
        given = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
        self.patterns = [os.fspath(item) for item in given]
        if not self.patterns or not all(self.patterns):
            raise GraphError(
                f"ReadFiles({pattern!r}) names no files.", hint="Give a path, glob or folder."
            )
        if rows_per_part is not None and rows_per_part < 1:
            raise GraphError(f"ReadFiles(rows_per_part={rows_per_part}) is not positive.")
        self.encoding = encoding
        self.rows_per_part = rows_per_part
        self.content_hash = content_hash

    def output_columns(self, columns: Sequence[str] = ()) -> tuple[str, ...] | None:
        """Columns that all files have, judged by the first file of each suffix."""
        first: dict[str, Path] = {}
        for path in self._files():
            first.setdefault(path.suffix.lower(), path)
        known: tuple[str, ...] | None = None
        for suffix, path in first.items():
            found = peek_columns(path) if suffix in TABLES else tuple(SCHEMA.names)
            if found is None:
                return None
            known = found if known is None else tuple(name for name in known if name in found)
        return known

    def parts(self) -> Sequence[SourcePart]:
        made = [part for path in self._files() for part in self._parts(path)]
        if not made:
            shown = ", ".join(repr(pattern) for pattern in self.patterns)
            raise EmptySourceError(
                f"no file matches {shown} (working directory {Path.cwd()}).",
                hint="Folders are searched for "
                + ", ".join(sorted(DOCUMENTS | TABLES))
                + "; files of other kinds must be named.",
            )
        return made

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        path, label, span = part.spec
        if Path(path).suffix.lower() in TABLES:
            yield from read_table(Path(path), label, self.encoding, span)
        else:
            yield from read_document(Path(path), label, self.encoding)

    # -- inside ---------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """All files, each once, in the order of the patterns and sorted within each."""
        found: dict[Path, None] = {}
        for pattern in self.patterns:
            expanded = os.path.expanduser(pattern)
            path = Path(expanded)
            if path.is_dir():
                matches = _below(path)
            elif path.exists():
                matches = [path]
            else:
                matches = [
                    match
                    for name in sorted(glob.glob(expanded, recursive=True))
                    if not (match := Path(name)).is_dir()
                ]
            found.update(dict.fromkeys(match.absolute() for match in matches))
        return list(found)

    def _parts(self, path: Path) -> Iterator[SourcePart]:
        label = _label(path)
        try:
            status = path.stat()
            version = (
                _digest(path) if self.content_hash else f"{status.st_size}:{status.st_mtime_ns}"
            )
        except OSError as error:
            # It is there, but cannot be looked at: reading it will say so, in its own part.
            yield SourcePart(f"{path}|{error.errno}", (str(path), label, None), label)
            return
        spans = None
        if self.rows_per_part is not None and path.suffix.lower() in TABLES:
            try:
                spans = ranges(path, self.rows_per_part)
            except RecordError:
                spans = None  # again: the part says what is wrong
        if not spans:
            key, size = f"{path}|{version}", float(max(status.st_size, 1))
            yield SourcePart(key, (str(path), label, None), label, size)
            return
        for span in spans:
            start, stop, first = span
            yield SourcePart(
                f"{path}|{version}|{start}-{stop}",
                (str(path), label, span),
                f"{label}:{first}",
                max(status.st_size, 1) / len(spans),
            )


def _below(folder: Path) -> list[Path]:
    """Supported files under ``folder``, sorted; hidden files and folders are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in DOCUMENTS | TABLES:
                found.append(path)
    return found


def _label(path: Path) -> str:
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
