"""A stable hash of rows: equal values give the same number in every process, on every machine.

Python's own ``hash`` of text differs from process to process, so that two workers would send the
rows of one key to two places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import MissingColumnError
from sage_prefect.kernel.fingerprint import fingerprint

Hashes = npt.NDArray[np.uint64]

_NULL = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0x100000001B3)
_TWO_63 = float(2**63)


def hash_rows(
    batch: pa.RecordBatch | pa.Table, columns: Sequence[str], seed: int = 0, who: str = "hash"
) -> Hashes:
    """One uint64 per row of ``batch``, of the values in ``columns``.

    Numbers that are equal in Python (``1``, ``1.0``, ``True``) hash alike, as do 32 and 64 bit
    strings; null has a hash of its own.

    Args:
        who: operator that asks, for errors.

    Raises:
        MissingColumnError: a column is not there.
    """
    mixed = np.full(batch.num_rows, np.uint64(seed), np.uint64)
    for name in columns:
        if name not in batch.schema.names:
            raise MissingColumnError(who, name, batch.schema.names)
        values = batch.column(name)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        mixed = _mix(mixed * _PRIME ^ hash_values(values))
    return mixed


def hash_values(values: pa.Array) -> Hashes:
    """One uint64 per value."""
    kind = values.type
    if isinstance(values, pa.ChunkedArray):  # combine_chunks() of several dictionaries
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_null(kind):
        return np.full(len(values), _NULL, np.uint64)
    if pa.types.is_dictionary(kind):
        return hash_values(values.dictionary_decode())
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
        found = _of_integers(values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
    elif pa.types.is_integer(kind):
        found = _of_integers(values.fill_null(0).to_numpy(zero_copy_only=False))
    elif pa.types.is_floating(kind):
        found = _of_floats(values.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False))
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        moments = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        numbers = moments.cast(pa.int64()).fill_null(0)
        found = _of_integers(numbers.to_numpy(zero_copy_only=False))
    elif (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        found = _of_bytes(values.cast(pa.large_binary()))
    else:
        # Decimals, lists, structs: rare as keys, so that speed matters less than being right.
        found = np.array(
            [int(fingerprint(_plain(value))[:16], 16) for value in values.to_pylist()], np.uint64
        )
    if values.null_count:
        nulls = pc.is_null(values).to_numpy(zero_copy_only=False)
        found = np.where(nulls, _NULL, found)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return [type(value).__name__, str(value)]


def _of_integers(values: npt.NDArray[Any]) -> Hashes:
    # Unsigned values above 2**63 and negative ones share bits: as in Python's hash, that is rare.
    return _mix(values.astype(np.uint64, casting="unsafe"))


def _of_floats(values: npt.NDArray[np.float64]) -> Hashes:
    whole = (np.floor(values) == values) & (np.abs(values) < _TWO_63)
    integers = np.where(whole, values, 0.0).astype(np.int64)
    # All NaNs are one key, whatever their bits.
    bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
    return np.where(whole, _of_integers(integers), _mix(bits ^ _PRIME))


def _of_bytes(values: pa.LargeBinaryArray) -> Hashes:
    """A polynomial over each value's bytes, for all values at once."""
    count = len(values)
    if not count:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(values.buffers()[1], np.int64)[
        values.offset : values.offset + count + 1
    ]
    lengths = np.diff(offsets)
    found = lengths.astype(np.uint64) + np.uint64(1)
    if lengths.any():
        data = np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        starts = offsets[:-1] - offsets[0]
        places = np.arange(len(data)) - np.repeat(starts, lengths)
        terms = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[places]
        filled = lengths > 0
        found[filled] ^= np.add.reduceat(terms, starts[filled])
    return _mix(found)


_POWERS: list[Hashes] = [np.ones(1, np.uint64)]


def _powers(count: int) -> Hashes:
    """``_PRIME ** 0, 1, ...`` modulo 2**64."""
    if len(_POWERS[0]) < count:
        powers = np.full(max(count, 256), _PRIME, np.uint64)
        powers[0] = 1
        _POWERS[0] = np.multiply.accumulate(powers)
    return _POWERS[0]


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014): each input bit reaches each output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
