"""Sort, and the best rows by a column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import RecordError
from sage_prefect.kernel.exchange_file import joined
from sage_prefect.kernel.kinds import COMPARABLE
from sage_prefect.kernel.operator import PartitionOperator, SetAside
from sage_prefect.kernel.relational.tables import (
    batches_of,
    column_of,
    concatenate,
    gather,
    group_ids,
    ranks,
)

# Rows held before those that cannot be among the best are dropped.
_HELD_ROWS = 1 << 18


class Sort(PartitionOperator):
    """All rows of a partition in order; rows that are equal keep theirs. Nulls come last.

    Args:
        by: columns, the first counts most.
        descending: largest first.
    """

    name = "sort"
    row_cost_s = 1e-6

    def __init__(self, by: Sequence[str], descending: bool = False) -> None:
        self.by = tuple(by)
        self.descending = descending
        self.reads = self.by
        self.expects = dict.fromkeys(self.by, COMPARABLE)

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        table = gather(self.name, batches)
        if table is not None:
            yield from batches_of(table.take(order_by(self.name, table, self.by, self.descending)))


class TopK(PartitionOperator):
    """The ``k`` rows with the largest values, of all or of each group, best first. Of equal rows
    the earlier one wins; nulls come last.

    Args:
        k: how many.
        by: column to compare.
        keys: columns that make a group; none: all rows are one.
        largest: False: the smallest values.
    """

    name = "top-k"
    row_cost_s = 1e-6

    def __init__(self, k: int, by: str, keys: Sequence[str] = (), largest: bool = True) -> None:
        self.k = k
        self.by = by
        self.keys = tuple(keys)
        self.largest = largest
        self.reads = (*self.keys, by)
        self.expects = dict.fromkeys(self.reads, COMPARABLE)

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        best: list[pa.Table] = []
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            held.append(batch)
            rows += batch.num_rows
            if rows >= _HELD_ROWS:
                best, held, rows = self._best([*best, *joined(held)]), [], 0
        for table in self._best([*best, *joined(held)]):
            yield from batches_of(table)

    def _best(self, tables: list[pa.Table]) -> list[pa.Table]:
        table = concatenate(self.name, tables)
        if table is None:
            return []
        table = table.take(order_by(self.name, table, (self.by,), self.largest))
        if not self.keys:
            return [table.slice(0, self.k)]
        kept = ranks(group_ids(self.name, table, self.keys)) < self.k
        return [table.filter(pa.array(kept))]


def order_by(operator: str, table: pa.Table, by: Sequence[str], descending: bool) -> pa.Array:
    """Positions of the rows in order. Arrow's sort is stable.

    Raises:
        MissingColumnError: a column is not there.
        RecordError: its type has no order.
    """
    order = "descending" if descending else "ascending"
    for name in by:
        column_of(operator, table, name)
    try:
        return pc.sort_indices(table.select(list(by)), sort_keys=[(name, order) for name in by])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        kinds = ", ".join(f"{name}: {table.schema.field(name).type}" for name in by)
        raise RecordError(
            f"operator {operator!r} cannot order rows by {kinds}.",
            hint="Sort by numbers, text, booleans or times.",
        ) from error
