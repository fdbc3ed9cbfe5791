"""Batches of a partition as one table, and its rows as groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sage_prefect.common.errors import MissingColumnError, RecordError
from sage_prefect.kernel.exchange_file import joined

Ids = npt.NDArray[np.int64]


def gather(operator: str, batches: Iterable[pa.RecordBatch]) -> pa.Table | None:
    """All rows as one table; None without any. Columns that a batch lacks are null there, and
    numbers widen.

    Raises:
        RecordError: a column has types that do not go together.
    """
    return concatenate(operator, joined([batch for batch in batches if batch.num_rows]))


def concatenate(operator: str, tables: Sequence[pa.Table]) -> pa.Table | None:
    """Tables one after the other; see :func:`gather`."""
    return stacked(operator, tables) if tables else None


def stacked(operator: str, tables: Sequence[pa.Table]) -> pa.Table:
    """At least one table; see :func:`gather`."""
    plain = [table.replace_schema_metadata(None) for table in tables]
    try:
        return pa.concat_tables(plain, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise RecordError(
            f"operator {operator!r}: a column has different types in different rows: {error}.",
            hint="Give a column the same type in all rows.",
        ) from error


def batches_of(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows of ``table``, as few batches."""
    yield from table.combine_chunks().to_batches()


def column_of(operator: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Column ``name`` of ``table``.

    Raises:
        MissingColumnError: it is not there.
    """
    if name not in table.schema.names:
        raise MissingColumnError(operator, name, table.schema.names)
    return table.column(name)


def group_ids(operator: str, table: pa.Table, keys: Sequence[str]) -> Ids:
    """A number per row: equal for rows whose ``keys`` are equal (null equals null). Without keys
    all rows are one group.

    Raises:
        MissingColumnError: a key is not there.
        RecordError: a key's type has no equality (lists, structs).
    """
    ids: Ids = np.zeros(table.num_rows, np.int64)
    for name in keys:
        values: Any = column_of(operator, table, name)
        try:
            encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RecordError(
                f"operator {operator!r} cannot compare column {name!r}, which holds {values.type}.",
                hint="Use a key of numbers, text, booleans or times.",
            ) from error
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.unify_dictionaries().combine_chunks()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Renumbered at each column, so that the product below stays small.
        _, ids = np.unique(ids * (len(encoded.dictionary) + 1) + codes, return_inverse=True)
    return ids


def ranks(ids: Ids) -> Ids:
    """The position of each row within its group, in the order of the rows."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ids) else order
    lengths = np.diff(np.r_[starts, len(ids)])
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids)) - np.repeat(starts, lengths)
    return found
