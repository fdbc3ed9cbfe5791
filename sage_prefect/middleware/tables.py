"""Files that hold rows: JSON lines, CSV, Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from sage_prefect.common.errors import RecordError
from sage_prefect.kernel.operator import rows_to_batch
from sage_prefect.libs.extract.decoding import NotTextError, detect
from sage_prefect.middleware.documents import read_bytes

JSONL = frozenset({".jsonl", ".ndjson"})
CSV = frozenset({".csv", ".tsv"})
PARQUET = frozenset({".parquet"})
TABLES = JSONL | CSV | PARQUET

_BATCH_ROWS = 1024
_PEEK_BYTES = 1 << 16

#: Range of a file: JSON lines: bytes and number of the first line; Parquet: rows. None: all.
Range = tuple[int, int, int]


def read_table(
    path: Path, label: str, encoding: str | None, span: Range | None
) -> Iterator[pa.RecordBatch]:
    """Rows of one file with its own columns, and ``source`` (``file:row``) unless it has that.

    Raises:
        RecordError: the file cannot be read; names it and, if known, the line.
    """
    suffix = path.suffix.lower()
    if suffix in JSONL:
        yield from _read_jsonl(path, label, span)
    elif suffix in CSV:
        yield from _read_csv(path, label, encoding)
    else:
        yield from _read_parquet(path, label, span)


def peek_columns(path: Path) -> tuple[str, ...] | None:
    """Columns of the file, from its schema or its first rows; None where that does not tell."""
    suffix = path.suffix.lower()
    try:
        if suffix in JSONL:
            columns = _peek_jsonl(path)
        elif suffix in CSV:
            with path.open("rb") as file:
                head = file.read(_PEEK_BYTES)
            columns = pc.read_csv(
                pa.BufferReader(head[: head.rfind(b"\n") + 1] or head), **_csv_options(path, None)
            ).column_names
        else:
            columns = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid, orjson.JSONDecodeError, NotTextError, RecordError):
        return None  # the run will say what is wrong with it
    if not columns:
        return None
    return tuple(columns) if "source" in columns else (*columns, "source")


def ranges(path: Path, rows: int) -> list[Range] | None:
    """The file in ranges of about ``rows`` rows; None if it cannot be cut (CSV).

    Raises:
        RecordError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in JSONL:
        return _line_ranges(path, rows)
    if suffix in PARQUET:
        with _parquet(path) as file:
            total = int(file.metadata.num_rows)
        return [(start, min(start + rows, total), start + 1) for start in range(0, total, rows)]
    return None


# -- JSON lines ---------------------------------------------------------------------------


def _read_jsonl(path: Path, label: str, span: Range | None) -> Iterator[pa.RecordBatch]:
    if span is None:
        content, first = read_bytes(path), 1
    else:
        start, stop, first = span
        try:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
        except OSError as error:
            raise RecordError(f"cannot read {path}: {error.strerror or error}.") from error
    held: list[dict[str, Any]] = []
    found = False
    for number, row in _json_rows(path, content, first):
        row.setdefault("source", f"{label}:{number}")
        held.append(row)
        found = True
        if len(held) == _BATCH_ROWS:
            yield _batch(path, held, number)
            held = []
    if held:
        yield _batch(path, held, number)
    if not found and span is None:
        raise RecordError(f"{path} has no rows.", hint="Leave it out, or set it aside.")


def _json_rows(path: Path, content: bytes, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if first == 1:
        content = content.removeprefix(b"\xef\xbb\xbf")
    start, number = 0, first
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end].strip()
        if line:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RecordError(
                    f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}): "
                    f"{_shown(line)}.",
                    hint="Each line of a .jsonl file is one JSON object.",
                ) from error
            if not isinstance(row, dict):
                raise RecordError(
                    f"{path}, line {number}: a JSON {type(row).__name__}, not an object: "
                    f"{_shown(line)}.",
                    hint="Each line of a .jsonl file is one JSON object.",
                )
            yield number, row
        start, number = end + 1, number + 1


def _batch(path: Path, rows: Sequence[dict[str, Any]], last: int) -> pa.RecordBatch:
    try:
        return rows_to_batch(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise RecordError(
            f"{path}, lines up to {last}: a column has values of different types: {error}.",
            hint="Give a key the same type in all lines.",
        ) from error


def _peek_jsonl(path: Path) -> list[str]:
    with path.open("rb") as file:
        content = file.read(_PEEK_BYTES)
        if content.count(b"\n") == 0:
            content += file.readline()
    names: dict[str, None] = {}
    complete = content if content.endswith(b"\n") else content[: content.rfind(b"\n") + 1]
    for line in (complete or content).removeprefix(b"\xef\xbb\xbf").splitlines()[:100]:
        if line.strip():
            row = orjson.loads(line)
            if not isinstance(row, dict):
                return []
            names.update(dict.fromkeys(row))
    return list(names)


def _line_ranges(path: Path, rows: int) -> list[Range]:
    found: list[Range] = []
    try:
        with path.open("rb") as file:
            start = position = 0
            first = number = 1
            for line in file:
                position += len(line)
                number += 1
                if number - first == rows:
                    found.append((start, position, first))
                    start, first = position, number
            if position > start:
                found.append((start, position, first))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}.") from error
    return found


def _shown(line: bytes) -> str:
    text = line[:60].decode("utf-8", "replace")
    return repr(text + ("..." if len(line) > 60 else ""))


# -- CSV ----------------------------------------------------------------------------------


def _read_csv(path: Path, label: str, encoding: str | None) -> Iterator[pa.RecordBatch]:
    read_bytes_head(path)
    row = 1
    try:
        with pc.open_csv(path, **_csv_options(path, encoding)) as reader:
            for batch in reader:
                yield _with_source(batch, label, row)
                row += batch.num_rows
    except NotTextError as error:
        raise RecordError(f"{path} is no text that can be read: {error}.") from error
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path}: not readable as CSV after row {row - 1}: {error}.",
            hint="The first line names the columns; a column has one type.",
        ) from error
    if row == 1:
        raise RecordError(f"{path} has no rows.", hint="Leave it out, or set it aside.")


def read_bytes_head(path: Path) -> bytes:
    """The beginning of the file.

    Raises:
        RecordError: it cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}.") from error
    if not head:
        raise RecordError(f"{path} is empty.", hint="Leave it out, or set it aside.")
    return head


def _csv_options(path: Path, encoding: str | None) -> dict[str, Any]:
    head = read_bytes_head(path)
    # The head may end inside a character: cut it at a line where there is one.
    chosen = encoding or detect(head[: head.rfind(b"\n") + 1] or head)
    return {
        "read_options": pc.ReadOptions(encoding="utf-8" if chosen == "utf-8-sig" else chosen),
        "parse_options": pc.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
    }


# -- Parquet ------------------------------------------------------------------------------


def _read_parquet(path: Path, label: str, span: Range | None) -> Iterator[pa.RecordBatch]:
    start, stop = (span[0], span[1]) if span is not None else (0, None)
    row = 0
    try:
        with _parquet(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                first, last = row, row + batch.num_rows
                row = last
                if last <= start:
                    continue
                if stop is not None and first >= stop:
                    break
                offset = max(start - first, 0)
                length = (last if stop is None else min(stop, last)) - first - offset
                yield _with_source(batch.slice(offset, length), label, first + offset + 1)
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(f"{path}: not readable as Parquet: {error}.") from error
    if row == 0:
        raise RecordError(f"{path} has no rows.", hint="Leave it out, or set it aside.")


def _parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(f"{path}: not readable as Parquet: {error}.") from error


def _with_source(batch: pa.RecordBatch, label: str, first: int) -> pa.RecordBatch:
    if "source" in batch.schema.names:
        return batch
    names = pa.array([f"{label}:{first + row}" for row in range(batch.num_rows)], pa.string())
    return pa.RecordBatch.from_arrays([*batch.columns, names], [*batch.schema.names, "source"])
