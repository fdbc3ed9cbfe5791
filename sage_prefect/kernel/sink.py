"""Where rows end: a sink stages each partition on a worker and publishes all of them once.

Two phases, so that nothing is written twice and nothing half: ``write`` stages one partition under
a name made of its content key (writing it again gives the same file); ``commit`` publishes the
staged partitions atomically. A run that dies between the two leaves the published state as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sage_prefect.kernel.exchange_file import joined
from sage_prefect.kernel.operator import Operator


@dataclass(frozen=True)
class Receipt:
    """What one staged partition amounts to. Small: it travels to the flow and into the commit log.

    Args:
        partition: content key of the partition.
        index: position of the partition in the run (commit keeps this order).
        rows: rows staged.
        location: where they are staged; "" when they travel in ``data``.
        data: for sinks that collect in memory.
    """

    partition: str
    index: int
    rows: int
    location: str = ""
    data: Any = None


@dataclass(frozen=True)
class Committed:
    """What a sink has published.

    Args:
        rows: rows published.
        location: where a reader finds them.
        detail: facts for people (generation, bytes...).
        data: the collected table, for sinks that collect in memory.
    """

    rows: int
    location: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    data: Any = None


class Sink(Operator):
    """Base of all sinks."""

    cardinality = "one"

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        """Stage one partition (idempotent: the same key overwrites itself atomically)."""
        raise TypeError(f"sink {self.name!r} defines no write().")

    def holds(self, receipt: Receipt) -> bool:
        """Whether a partition staged earlier is still there and need not be written again."""
        return False

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        """Publish all partitions of a run, in the order of their index, atomically."""
        raise TypeError(f"sink {self.name!r} defines no commit().")

    def current(self, committed: Committed) -> bool:
        """Whether what was published by an earlier run is still what a reader would find."""
        return False

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        return tuple(columns)


class Collect(Sink):
    """Keep the rows in memory and hand them back as ``RunReport.committed.data`` (a pyarrow Table).

    For tests, notebooks and small results: the rows travel to the process that runs the pipeline.
    """

    name = "collect"

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        # Rows made by Python functions may differ in the order and the types of their columns.
        kept = joined(list(batches))
        table = pa.concat_tables(kept, promote_options="permissive") if kept else None
        return Receipt(partition, index, table.num_rows if table else 0, data=table)

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        tables = [r.data for r in sorted(receipts, key=lambda r: r.index) if r.data is not None]
        table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
        return Committed(table.num_rows, "memory", data=table)
