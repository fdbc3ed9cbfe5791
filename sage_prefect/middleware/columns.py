"""Arrow columns in and out of operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sage_prefect.common.errors import MissingColumnError, RecordError

Vectors = npt.NDArray[np.float32]


def column(operator: str, batch: pa.RecordBatch, name: str) -> pa.Array:
    """Column ``name`` of ``batch``.

    Raises:
        MissingColumnError: it is not there (a source whose columns were not known before the run).
    """
    position = batch.schema.get_field_index(name)
    if position < 0:
        raise MissingColumnError(operator, name, batch.schema.names)
    return batch.column(position)


def texts(operator: str, batch: pa.RecordBatch, name: str) -> list[str | None]:
    """Column ``name`` as Python strings; null stays None.

    Raises:
        MissingColumnError: it is not there.
        RecordError: it does not hold text.
    """
    values = column(operator, batch, name)
    kind = values.type
    if pa.types.is_null(kind):
        return [None] * len(values)
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)):
        raise RecordError(
            f"operator {operator!r} reads column {name!r}, which holds {kind}, not text.",
            hint="Name a column of strings.",
        )
    found: list[str | None] = values.to_pylist()
    return found


def vectors(operator: str, batch: pa.RecordBatch, name: str) -> Vectors:
    """Column ``name`` as float32 ``[rows, dim]``; without a copy when it is a fixed-size list.

    Raises:
        MissingColumnError: it is not there.
        RecordError: it holds no vectors, a null, or vectors of different lengths.
    """
    values = column(operator, batch, name)
    kind = values.type
    if values.null_count:
        raise RecordError(
            f"operator {operator!r}: column {name!r} holds {values.null_count} null vector(s).",
            hint="Filter such rows out before this step.",
        )
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Rows that went through Python (a task, a row function) come back as plain lists.
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise RecordError(
                f"operator {operator!r}: vectors in column {name!r} have different lengths: "
                f"{', '.join(str(n) for n in lengths[:5])}.",
            )
        width = int(lengths[0]) if len(lengths) else 0
    else:
        raise RecordError(
            f"operator {operator!r} reads column {name!r}, which holds {kind}, not vectors.",
            hint="Put Embed(...) before this step.",
        )
    flat = values.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)) or flat.null_count:
        raise RecordError(
            f"operator {operator!r}: vectors in column {name!r} hold {flat.type} with "
            f"{flat.null_count} null(s), not numbers."
        )
    numbers: Vectors = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    matrix: Vectors = numbers.reshape(len(values), width)
    return matrix


def vector_array(matrix: Vectors) -> pa.Array:
    """float32 ``[rows, dim]`` as a ``FixedSizeList<float32>[dim]`` array."""
    flat = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def with_columns(batch: pa.RecordBatch, added: dict[str, Any]) -> pa.RecordBatch:
    """``batch`` with columns appended; one that is there already is replaced in its place."""
    names = list(batch.schema.names)
    arrays = list(batch.columns)
    for name, values in added.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if name in names:
            arrays[names.index(name)] = array
        else:
            names.append(name)
            arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=names)
