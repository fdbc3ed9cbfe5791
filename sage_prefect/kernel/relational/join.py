"""Joins by equal keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.kernel.exchange import input_of
from sage_prefect.kernel.operator import PartitionOperator, SetAside
from sage_prefect.kernel.relational.tables import (
    batches_of,
    column_of,
    gather,
    group_ids,
    stacked,
)

How = Literal["inner", "left"]


class Join(PartitionOperator):
    """Rows of the left input with each row of the right one whose keys are equal. A null key
    equals nothing.

    Args:
        on: key columns of the left input.
        right_on: those of the right input, in the same order.
        how: ``"inner"``, or ``"left"``: left rows without a partner stay, with nulls.
        suffix: added to right columns that the left input has too.
        right_columns: columns of the right input, where known.
    """

    name = "join"
    row_cost_s = 2e-6

    def __init__(
        self,
        on: Sequence[str],
        right_on: Sequence[str],
        how: How = "inner",
        suffix: str = "_right",
        right_columns: Sequence[str] | None = None,
    ) -> None:
        self.on = tuple(on)
        self.right_on = tuple(right_on)
        self.how = how
        self.suffix = suffix
        self.right_columns = None if right_columns is None else tuple(right_columns)

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        if self.right_columns is None:
            return None
        return (*columns, *self._named(columns, self.right_columns).values())

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        sides: tuple[list[pa.RecordBatch], list[pa.RecordBatch]] = ([], [])
        for batch in batches:
            sides[input_of(batch)].append(batch)
        left, right = (gather(self.name, side) for side in sides)
        if left is None or (right is None and self.how == "inner"):
            return
        if right is None:
            named = self._named(left.schema.names, self.right_columns or ())
            for name in named.values():
                left = left.append_column(name, pa.nulls(left.num_rows))
            yield from batches_of(left)
            return
        left_at, right_at = self._partners(left, right)
        found = left.take(left_at)
        for name, as_name in self._named(left.schema.names, right.schema.names).items():
            found = found.append_column(as_name, right.column(name).take(right_at))
        yield from batches_of(found)

    def _named(self, left: Sequence[str], right: Sequence[str]) -> dict[str, str]:
        """Right columns that come along -> their names."""
        return {
            name: name + self.suffix if name in left else name
            for name in right
            if name not in self.right_on
        }

    def _partners(self, left: pa.Table, right: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Positions of the rows that belong together; a null on the right: no partner."""
        names = [f"k{at}" for at in range(len(self.on))]
        left_keys = pa.table([column_of(self.name, left, n) for n in self.on], names=names)
        right_keys = pa.table([column_of(self.name, right, n) for n in self.right_on], names=names)
        both = stacked(self.name, [left_keys, right_keys])
        ids = group_ids(self.name, both, names)
        known = np.ones(len(ids), bool)
        for name in names:
            known &= pc.is_valid(both.column(name)).to_numpy()
        # Null keys of the two sides get numbers that differ.
        left_ids = np.where(known, ids, -1)[: left.num_rows]
        right_ids = np.where(known, ids, -2)[left.num_rows :]
        order = np.argsort(right_ids, kind="stable")
        ordered = right_ids[order]
        first = np.searchsorted(ordered, left_ids, "left")
        counts = np.searchsorted(ordered, left_ids, "right") - first
        kept = counts if self.how == "inner" else np.maximum(counts, 1)
        left_at = np.repeat(np.arange(left.num_rows), kept)
        within = np.arange(len(left_at)) - np.repeat(np.cumsum(kept) - kept, kept)
        lonely = np.repeat(counts == 0, kept)
        places = np.where(lonely, 0, np.repeat(first, kept) + within)
        return pa.array(left_at), pa.array(order[places], mask=lonely)
