"""Exchanges: where rows change partitions. The chain before ends in an :class:`ExchangeWriter`, the
chain after begins with an :class:`ExchangeReader`.

So every runner needs only to run chains, one after the other; rows are spilled to files under
content keys, and an interrupted run finds them again. Rows keep the order of the source within a
partition, so that "first" means the same however the input was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sage_prefect.kernel.exchange_file import ExchangeFileWriter, read_section
from sage_prefect.kernel.hashing import hash_rows
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.kernel.source import Source, SourcePart

#: More partitions than this after an exchange only make its files' indexes longer.
MAX_SECTIONS = 64
INPUT = b"sage.input"


@dataclass(frozen=True)
class Route:
    """How rows choose the partition that they go to.

    Args:
        kind: ``"hash"``: by a stable hash of ``keys``; ``"single"``: all to one; ``"forward"``:
            each partition stays as it is; ``"round_robin"``: by turns.
        keys: for ``"hash"``.
        partitions: how many there are afterwards; None: as many as before, at most
            ``MAX_SECTIONS``.
    """

    kind: Literal["hash", "single", "forward", "round_robin"]
    keys: tuple[str, ...] = ()
    partitions: int | None = None

    def __str__(self) -> str:
        if self.kind == "hash":
            return f"hash of {', '.join(self.keys)}"
        return {
            "single": "all into one partition",
            "forward": "partitions stay as they are",
            "round_robin": "by turns",
        }[self.kind]


class ExchangeWriter(Sink):
    """Stage one partition's rows, sorted into the sections that partitions after it read.

    Args:
        route: which row goes where.
        sections: how many partitions there are afterwards.
        folder: where the files go. Workers and the process that runs the pipeline share it.
    """

    name = "exchange"

    def __init__(self, route: Route, sections: int, folder: str) -> None:
        self.route = route
        self.sections = sections
        self.folder = folder
        self.reads = route.keys

    def key_params(self) -> Mapping[str, Any]:
        route = self.route
        return {"route": [route.kind, route.keys], "sections": self.sections}

    def file(self, partition: str) -> Path:
        """The file of the partition with this content key."""
        return Path(self.folder) / f"{partition}.exchange"

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        file = ExchangeFileWriter(self.file(partition))
        try:
            for batch in batches:
                self._route(file, batch, index)
            file.close()
        except BaseException:
            file.discard()
            raise
        return Receipt(partition, index, file.rows, str(self.file(partition)))

    def holds(self, receipt: Receipt) -> bool:
        return (
            receipt.location == str(self.file(receipt.partition))
            and self.file(receipt.partition).is_file()
        )

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        return Committed(sum(receipt.rows for receipt in receipts), self.folder)

    def remove(self, partitions: Sequence[str]) -> None:
        """Delete the files of these partitions."""
        for partition in partitions:
            self.file(partition).unlink(missing_ok=True)

    def _route(self, file: ExchangeFileWriter, batch: pa.RecordBatch, index: int) -> None:
        if self.sections == 1 or self.route.kind in ("single", "forward"):
            file.add(0, batch)
            return
        if self.route.kind == "hash":
            hashes = hash_rows(batch, self.route.keys, who=self.name)
            targets = (hashes % np.uint64(self.sections)).astype(np.int64)
        else:
            targets = (np.arange(batch.num_rows) + file.rows + index) % self.sections
        order = np.argsort(targets, kind="stable")
        sorted_rows = batch.take(pa.array(order))
        counts = np.bincount(targets, minlength=self.sections)
        start = 0
        for section in np.flatnonzero(counts):
            length = int(counts[section])
            file.add(int(section), sorted_rows.slice(start, length))
            start += length


class ExchangeReader(Source):
    """Read what the chains before left for one partition.

    A part's ``spec`` lists ``(input, file, section)``.

    Args:
        columns: of the rows, where known.
        marked: each batch's schema carries the number of its input (see :func:`input_of`).
    """

    name = "read-exchange"

    def __init__(self, columns: tuple[str, ...] | None = None, marked: bool = False) -> None:
        self.columns = columns
        self.marked = marked
        self.adds = columns or ()

    def key_params(self) -> Mapping[str, Any]:
        return {"marked": self.marked}

    def output_columns(self, columns: Sequence[str] = ()) -> tuple[str, ...] | None:
        return self.columns

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        for number, path, section in part.spec:
            for batch in read_section(path, section):
                yield _marked(batch, number) if self.marked else batch


def _marked(batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
    metadata = {**(batch.schema.metadata or {}), INPUT: str(number).encode()}
    return batch.replace_schema_metadata(metadata)


def input_of(batch: pa.RecordBatch) -> int:
    """Which input of an exchange the batch came from."""
    return int((batch.schema.metadata or {}).get(INPUT, b"0"))


def unmarked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``batch`` without the number of its input."""
    metadata = {k: v for k, v in (batch.schema.metadata or {}).items() if k != INPUT}
    return batch.replace_schema_metadata(metadata or None)
