"""Samples, and rows without their duplicates. What is chosen depends on the rows alone, not on how
they are cut into partitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from sage_prefect.kernel.hashing import Hashes, hash_rows, hash_values
from sage_prefect.kernel.operator import Operator, PartitionOperator, SetAside
from sage_prefect.kernel.relational.tables import batches_of, gather, group_ids

_SPAN = float(2**64)


class SampleFraction(Operator):
    """Each row with the same probability, by a hash of its values: rows that are equal stay or go
    together.

    Args:
        fraction: the expected share, 0 to 1.
        by: columns to hash; none: all.
        seed: another one chooses other rows.
    """

    name = "sample"
    cardinality = "fewer"
    row_cost_s = 2e-7

    def __init__(self, fraction: float, by: Sequence[str] = (), seed: int = 0) -> None:
        self.fraction = fraction
        self.by = tuple(by)
        self.seed = seed
        self.reads = self.by

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        drawn = draw(batch, self.by, self.seed)
        return batch.filter(pa.array(drawn.astype(np.float64) < self.fraction * _SPAN))


class SampleRows(PartitionOperator):
    """Exactly ``n`` rows (or all, if there are fewer), by a hash of their values.

    Args:
        n: how many.
        by: columns to hash; none: all.
        seed: another one chooses other rows.
    """

    name = "sample"
    row_cost_s = 5e-7

    def __init__(self, n: int, by: Sequence[str] = (), seed: int = 0) -> None:
        self.n = n
        self.by = tuple(by)
        self.seed = seed
        self.reads = self.by

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        table = gather(self.name, batches)
        if table is not None:
            drawn = draw(table, self.by, self.seed)
            chosen = np.sort(np.argsort(drawn, kind="stable")[: self.n])
            yield from batches_of(table.take(pa.array(chosen)))


class DropDuplicates(PartitionOperator):
    """The first row of each group of rows whose ``by`` are equal (null equals null).

    Args:
        by: columns to compare.
    """

    name = "deduplicate"
    row_cost_s = 1e-6

    def __init__(self, by: Sequence[str]) -> None:
        self.by = tuple(by)
        self.reads = self.by

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        table = gather(self.name, batches)
        if table is not None:
            _, first = np.unique(group_ids(self.name, table, self.by), return_index=True)
            yield from batches_of(table.take(pa.array(np.sort(first))))


def draw(batch: pa.RecordBatch | pa.Table, by: Sequence[str], seed: int) -> Hashes:
    """A uniform uint64 per row, by its values; a column that is not there counts as null."""
    if by:
        return hash_rows(batch, by, seed + 1, "sample")
    drawn = np.full(batch.num_rows, np.uint64(seed + 1))
    for name in sorted(batch.schema.names):
        values = batch.column(name)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        label = hash_values(pa.array([name]))[0]
        known = ~values.is_null().to_numpy(zero_copy_only=False)
        mixed = hash_rows(pa.record_batch({"v": values}), ["v"], int(label) % 2**32)
        drawn ^= np.where(known, mixed, np.uint64(0))
    return hash_values(pa.array(drawn.view(np.int64)))
