"""Staged partitions: Arrow files that a sink's workers write and its commit takes in."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from sage_prefect.common.errors import CorruptFileError, GraphError

#: Staged files of runs that never came back are removed after this time.
STALE_AFTER_S = 7 * 24 * 3600.0

_KEY = re.compile(r"[A-Za-z0-9._-]{1,200}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(what: str, name: str) -> str:
    """``name`` if it can be a folder's name.

    Raises:
        GraphError: it cannot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GraphError(
            f"{what} name {name!r} cannot be a folder's name.",
            hint="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return name


def stage(folder: Path, partition: str, batches: Iterator[pa.RecordBatch]) -> tuple[Path, int]:
    """Write one partition as ``<folder>/<partition>.arrow``: whole, or not at all.

    Batches whose types differ (a column that is null at first) are brought to a common schema.

    Returns:
        The file, and its rows (0: no file is written).

    Raises:
        GraphError: the types of two batches have nothing in common.
    """
    if not _KEY.fullmatch(partition):
        raise GraphError(f"partition key {partition!r} cannot be a file's name. This is a bug.")
    final = folder / f"{partition}.arrow"
    first = next((batch for batch in batches if batch.num_rows), None)
    if first is None:
        final.unlink(missing_ok=True)
        return final, 0
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    try:
        rows = _write(temporary, first, batches)
        sync_file(temporary)
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return final, rows


def open_arrow(path: Path) -> pa.RecordBatchFileReader:
    """A memory-mapped Arrow file. Its batches stay readable after the file is deleted.

    Raises:
        CorruptFileError: it is damaged.
        FileNotFoundError: it is not there.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path), "r"))
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptFileError(
            f"{path} is damaged: {error}.", hint="Run the pipeline that writes it again."
        ) from error


def batches_of(reader: pa.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    """All batches of an Arrow file, in order."""
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def discard(folder: Path, files: list[Path]) -> None:
    """Remove staged files that are published, and those that nobody came back for."""
    for file in files:
        file.unlink(missing_ok=True)
    oldest = time.time() - STALE_AFTER_S
    for file in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another commit removes the same
            if file.stat().st_mtime < oldest:
                file.unlink()


def unify(schemas: list[pa.Schema], what: str) -> pa.Schema:
    """The schema that all of ``schemas`` can be brought to.

    Raises:
        GraphError: a column has types that do not go together.
    """
    if not schemas:
        return pa.schema([])
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise GraphError(
            f"{what}: batches have columns of different types: {error}.",
            hint="Give the column one type in every row before the sink.",
        ) from error


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """``batch`` with the columns and types of ``schema``; absent columns are null."""
    if batch.schema == schema:
        return batch
    arrays = []
    for field in schema:
        position = batch.schema.get_field_index(field.name)
        if position < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            arrays.append(batch.column(position).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def sync_file(path: Path) -> None:
    """Have the file's content on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> int:
    schema = first.schema
    rows = int(first.num_rows)
    writer = pa.ipc.new_file(str(path), schema)
    try:
        writer.write_batch(first)
        for batch in rest:
            if not batch.num_rows:
                continue
            if batch.schema != schema:
                wider = unify([schema, batch.schema], path.parent.name)
                if wider != schema:
                    writer.close()
                    writer = _rewrite(path, wider)
                    schema = wider
                batch = conform(batch, schema)
            writer.write_batch(batch)
            rows += int(batch.num_rows)
    finally:
        writer.close()
    return rows


def _rewrite(path: Path, schema: pa.Schema) -> pa.RecordBatchFileWriter:
    """Go on with a wider schema: what is written so far is written again."""
    written = open_arrow(path)
    wider = _temporary(path.parent)
    writer = pa.ipc.new_file(str(wider), schema)
    for batch in batches_of(written):
        writer.write_batch(conform(batch, schema))
    os.replace(wider, path)
    return writer


def _temporary(folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".writing-", suffix=".arrow")
    os.close(descriptor)
    return Path(name)
