"""The file in which one partition leaves its rows for the partitions after an exchange.

Layout: ``MAGIC``, extents (each an Arrow IPC stream of one section's rows), a JSON index
``{"sections": {"0": [[offset, length, rows], ...]}}``, its length in 8 bytes, ``MAGIC``. A reader
maps the file and touches only the sections that it wants.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from sage_prefect.common.errors import CorruptFileError, PipelineError

MAGIC = b"SAGEEXC1"
# Rows are held per section and written in extents: this bounds what a writer holds.
FLUSH_BYTES = 32 << 20


class ExchangeFileWriter:
    """Writes one exchange file; it appears under its name when it is whole.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        self._file = self._draft.open("wb")
        self._file.write(MAGIC)
        self._held: dict[int, list[pa.RecordBatch]] = {}
        self._held_bytes = 0
        self._index: dict[str, list[list[int]]] = {}

    def add(self, section: int, batch: pa.RecordBatch) -> None:
        """Add rows to ``section``; their order within a section is kept."""
        if batch.num_rows:
            self._held.setdefault(section, []).append(batch)
            self._held_bytes += batch.nbytes
            self.rows += batch.num_rows
            if self._held_bytes >= FLUSH_BYTES:
                self._flush()

    def close(self) -> None:
        """Write the rest, and put the file in its place."""
        self._flush()
        index = orjson.dumps({"sections": self._index})
        self._file.write(index + len(index).to_bytes(8, "little") + MAGIC)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._draft, self._path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._draft.unlink(missing_ok=True)

    def _flush(self) -> None:
        for section in sorted(self._held):
            for table in joined(self._held[section]):
                start = self._file.tell()
                # Through a buffer: an Arrow writer would close the file with the stream.
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table)
                self._file.write(sink.getvalue())
                extent = [start, self._file.tell() - start, table.num_rows]
                self._index.setdefault(str(section), []).append(extent)
        self._held, self._held_bytes = {}, 0


def read_section(path: str, section: int) -> Iterator[pa.RecordBatch]:
    """The rows of one section, in the order in which they were added.

    Raises:
        PipelineError: the file is gone.
        CorruptFileError: it is damaged, or of an unknown format.
    """
    try:
        file = pa.memory_map(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"exchange file {path} is gone.",
            hint="Workers and the process that runs the pipeline must share the folder. Run again.",
        ) from error
    with file:
        for offset, length, rows in _index(file, path).get(str(section), []):
            file.seek(offset)
            found = 0
            with pa.ipc.open_stream(pa.BufferReader(file.read_buffer(length))) as stream:
                for batch in stream:
                    found += batch.num_rows
                    yield batch
            if found != rows:
                raise CorruptFileError(
                    f"exchange file {path}, section {section}: {found} row(s), {rows} expected.",
                    hint='Run again with reuse="never".',
                )


def _index(file: Any, path: str) -> dict[str, list[list[int]]]:
    size = file.size()
    tail = len(MAGIC) + 8
    if size >= tail + len(MAGIC):
        file.seek(size - tail)
        end = file.read(tail)
        length = int.from_bytes(end[:8], "little")
        if end[8:] == MAGIC and length <= size - tail - len(MAGIC):
            file.seek(size - tail - length)
            sections: dict[str, list[list[int]]] = orjson.loads(file.read(length))["sections"]
            return sections
    raise CorruptFileError(
        f"exchange file {path} is damaged, or not of format {MAGIC.decode()}.",
        hint='Run again with reuse="never".',
    )


def joined(batches: list[pa.RecordBatch]) -> list[pa.Table]:
    """``batches`` as few tables as their schemas allow: neighbours of one schema are joined."""
    runs: list[list[pa.RecordBatch]] = []
    for batch in batches:
        if runs and runs[-1][0].schema.equals(batch.schema, check_metadata=True):
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return [pa.Table.from_batches(run).combine_chunks() for run in runs]
