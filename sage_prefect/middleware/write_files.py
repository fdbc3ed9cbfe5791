"""``WriteParquet``, ``WriteJsonl`` and ``WriteCsv``: rows to one file, published once."""

from __future__ import annotations

import base64
import decimal
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from sage_prefect.common.errors import GraphError, PipelineError
from sage_prefect.common.paths import atomic_write, data_dir
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.middleware.staging import (
    batches_of,
    check_name,
    conform,
    discard,
    open_arrow,
    stage,
    sync_file,
    sync_folder,
    unify,
)


def results_dir() -> Path:
    """Where results go that are given a name, not a path."""
    return data_dir() / "results"


class _WriteFile(Sink):
    """Stage Arrow files beside the target; put them together into one file on commit."""

    suffix: str
    row_cost_s = 1e-5

    def __init__(self, name_or_path: str | os.PathLike[str]) -> None:
        text = os.fspath(name_or_path)
        if not text:
            raise GraphError(f"{type(self).__name__} got an empty name.", hint="Give it a name.")
        if os.sep in text or text.startswith("~") or text.endswith(self.suffix):
            self._path: Path | None = Path(text).expanduser().absolute()
            # Workers may have another working directory: they get the absolute path.
            self._params = {"name_or_path": str(self._path)}
        else:
            self._path = None
            self._name = check_name("result", text)

    @property
    def path(self) -> Path:
        """The file that is published."""
        return self._path or results_dir() / f"{self._name}{self.suffix}"

    @property
    def staging(self) -> Path:
        """Where partitions are staged."""
        return self.path.parent / f".{self.path.name}.staging"

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        file, rows = stage(self.staging, partition, batches)
        return Receipt(partition, index, rows, str(file) if rows else "")

    def holds(self, receipt: Receipt) -> bool:
        return not receipt.rows or Path(receipt.location).is_file()

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        ordered = sorted((r for r in receipts if r.rows), key=lambda r: r.index)
        keys = [receipt.partition for receipt in ordered]
        files = [Path(receipt.location) for receipt in ordered]
        with self._locked():
            record = self._record()
            missing = [file for file in files if not file.is_file()]
            # Rows staged anew are published anew: a model may answer the same question otherwise.
            again = bool(files) and not missing
            if not again and record and record["keys"] == keys and self._untouched(record):
                return self._committed(record)
            if missing:
                raise PipelineError(
                    f"sink {self.name!r}: staged file {missing[0]} is gone.",
                    hint="Workers and the process that commits must share the folder. Run again.",
                )
            rows = self._publish(files)
            status = self.path.stat()
            record = {
                "keys": keys,
                "rows": rows,
                "commit": uuid.uuid4().hex,
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
            atomic_write(self._record_file(), orjson.dumps(record))
            self._discard(files)
        return self._committed(record)

    def current(self, committed: Committed) -> bool:
        record = self._record()
        return (
            record is not None
            and record["commit"] == committed.detail.get("commit")
            and self._untouched(record)
        )

    def compose(self, target: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Write all batches to ``target``."""
        raise TypeError(f"sink {self.name!r} defines no compose().")

    # -- inside ---------------------------------------------------------------------------

    def _publish(self, files: list[Path]) -> int:
        schema = unify([open_arrow(file).schema for file in files], str(self.path))

        rows = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal rows
            for file in files:
                for batch in batches_of(open_arrow(file)):
                    rows += int(batch.num_rows)
                    yield conform(batch, schema)

        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(descriptor)
        building = Path(name)
        try:
            self.compose(building, schema, batches())
            building.chmod(0o644)
            sync_file(building)
            os.replace(building, self.path)
        except BaseException:
            building.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)
        return rows

    def _discard(self, files: list[Path]) -> None:
        record = self._record_file()
        record.touch()  # it must outlive the stale files beside it
        discard(self.staging, files)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.staging.mkdir(parents=True, exist_ok=True)
        lock = self.path.parent / f".{self.path.name}.lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _record_file(self) -> Path:
        return self.staging / "COMMITTED"

    def _record(self) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = orjson.loads(self._record_file().read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return record

    def _untouched(self, record: dict[str, Any]) -> bool:
        """Whether the file is still the one that the record tells of."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        found = (status.st_size, status.st_mtime_ns)
        return bool(found == (record["size"], record["mtime_ns"]))

    def _committed(self, record: dict[str, Any]) -> Committed:
        detail = {"commit": record["commit"], "bytes": record["size"]}
        return Committed(int(record["rows"]), str(self.path), detail)


class WriteParquet(_WriteFile):
    """Publish rows as one Parquet file.

    Partitions are staged by workers in a hidden folder beside the file and put together by one
    atomic step, in the order of the source; a run replaces the file of the run before.

    Args:
        name_or_path: a name (``"answers"`` is ``<data>/results/answers.parquet``) or a path (has a
            slash or ends in ``.parquet``).

    Raises:
        GraphError: the name is unusable, or a column has types that do not go together.
    """

    name = "write-parquet"
    suffix = ".parquet"

    def compose(self, target: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        with pq.ParquetWriter(target, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)


class WriteJsonl(_WriteFile):
    """Publish rows as one file of JSON lines. As :class:`WriteParquet` otherwise.

    Times become ISO 8601 texts, bytes base64, decimals texts; NaN and infinities become null.

    Args:
        name_or_path: a name (``"answers"`` is ``<data>/results/answers.jsonl``) or a path (has a
            slash or ends in ``.jsonl``).

    Raises:
        GraphError: the name is unusable, or a column has types that do not go together.
    """

    name = "write-jsonl"
    suffix = ".jsonl"

    def compose(self, target: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        with target.open("wb") as file:
            for batch in batches:
                for row in batch.to_pylist():
                    file.write(orjson.dumps(row, default=_as_json, option=_LINE))


class WriteCsv(_WriteFile):
    """Publish rows as one CSV file with a head line. As :class:`WriteParquet` otherwise.

    Lists and structs become JSON text; null is an empty field, an empty text is ``""``.

    Args:
        name_or_path: a name (``"answers"`` is ``<data>/results/answers.csv``) or a path (has a
            slash or ends in ``.csv``).

    Raises:
        GraphError: the name is unusable, or a column has types that do not go together.
    """

    name = "write-csv"
    suffix = ".csv"

    def compose(self, target: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        nested = {f.name for f in schema if pa.types.is_nested(f.type)}
        flat = pa.schema([pa.field(f.name, pa.string()) if f.name in nested else f for f in schema])
        with pc.CSVWriter(target, flat) as writer:
            for batch in batches:
                columns = [
                    _as_texts(batch.column(f.name)) if f.name in nested else batch.column(f.name)
                    for f in schema
                ]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=flat))


def _as_texts(values: pa.Array) -> pa.Array:
    made = [
        None if value is None else orjson.dumps(value, default=_as_json).decode()
        for value in values.to_pylist()
    ]
    return pa.array(made, pa.string())


_LINE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


def _as_json(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
