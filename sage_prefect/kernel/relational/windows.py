"""Windows over event time: tumbling and sliding, and rows that come too late for theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import GraphError, RecordError
from sage_prefect.kernel.operator import Operator, PartitionOperator, RowFailure, SetAside
from sage_prefect.kernel.relational.tables import batches_of, column_of, gather, group_ids

START, END = "window_start", "window_end"
Moments = npt.NDArray[np.int64]
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")


def microseconds(value: float | str | timedelta, what: str = "duration") -> int:
    """Microseconds of ``30`` (seconds), ``"5m"``, ``"250ms"`` or a timedelta.

    Raises:
        GraphError: it is none of these, or negative.
    """
    if isinstance(value, timedelta):
        found = value // timedelta(microseconds=1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = round(value * 1_000_000)
    else:
        match = _DURATION.match(value) if isinstance(value, str) else None
        found = round(float(match[1]) * _UNITS[match[2]]) if match else -1
    if found < 0:
        raise GraphError(
            f"{what} {value!r} is no duration.",
            hint='Use seconds, a timedelta, or a text such as "5m" (ms, s, m, h, d).',
        )
    return found


class AssignWindows(Operator):
    """Adds ``window_start`` and ``window_end`` (exclusive); a row of several windows comes once for
    each. Windows are aligned to the epoch.

    Args:
        time: column of timestamps, dates, or seconds as numbers.
        size_us: length of a window, microseconds.
        slide_us: from the start of one to the next; the same: tumbling windows.
    """

    name = "window"
    cardinality = "many"
    row_cost_s = 5e-7

    def __init__(self, time: str, size_us: int, slide_us: int) -> None:
        self.time = time
        self.size_us = size_us
        self.slide_us = slide_us
        self.reads = (time,)
        self.adds = (START, END)
        self.expects = {time: ("time", "number")}

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        values = column_of(self.name, batch, self.time)
        moments = event_times(self.name, self.time, values)
        last = moments // self.slide_us * self.slide_us
        # A row belongs to the windows that start in (moment - size, moment].
        count = -(-self.size_us // self.slide_us)
        starts = last[:, None] - np.arange(count)[::-1] * self.slide_us
        within = starts + self.size_us > moments[:, None]
        rows = np.repeat(np.arange(batch.num_rows), within.sum(axis=1))
        found = batch.take(pa.array(rows))
        chosen = starts[within]
        for name, at in ((START, chosen), (END, chosen + self.size_us)):
            made = _as_type(at, values.type)
            position = found.schema.get_field_index(name)
            if position >= 0:
                found = found.set_column(position, name, made)
            else:
                found = found.append_column(name, made)
        return found


class SetLateRowsAside(PartitionOperator):
    """Set rows aside whose windows have closed: the watermark, the latest event time of the same
    key among the rows before it, has passed the end of the last of them by ``lateness``.

    The watermark is kept per key, so that what is late does not depend on partitions.

    Args:
        time: column of event time.
        keys: columns that make a key; none: all rows are one.
        size_us, slide_us: as in :class:`AssignWindows`.
        lateness_us: how much longer a window takes rows.
    """

    name = "late-rows"
    row_cost_s = 1e-6

    def __init__(
        self, time: str, keys: Sequence[str], size_us: int, slide_us: int, lateness_us: int
    ) -> None:
        self.time = time
        self.keys = tuple(keys)
        self.size_us = size_us
        self.slide_us = slide_us
        self.lateness_us = lateness_us
        self.reads = (*self.keys, time)

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        table = gather(self.name, batches)
        if table is None:
            return
        values = column_of(self.name, table, self.time)
        moments = event_times(self.name, self.time, values)
        closes = moments // self.slide_us * self.slide_us + self.size_us + self.lateness_us
        watermarks: dict[int, int] = {}
        late = np.zeros(table.num_rows, bool)
        ids = group_ids(self.name, table, self.keys)
        rows = zip(ids.tolist(), moments.tolist(), closes.tolist(), strict=True)
        for row, (key, moment, close) in enumerate(rows):
            mark = watermarks.get(key)
            if mark is None or moment > mark:
                watermarks[key] = moment
            elif close <= mark:
                late[row] = True
        if late.any():
            for batch in batches_of(table.filter(pa.array(late))):
                set_aside(batch, f"late: its window closed before it came (column {self.time!r})")
        yield from batches_of(table.filter(pa.array(~late)))


def event_times(operator: str, name: str, values: pa.Array | pa.ChunkedArray) -> Moments:
    """Microseconds since the epoch.

    Raises:
        RowFailure: a row has no time.
        RecordError: the column holds no times.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type
    if values.null_count:
        row = int(np.flatnonzero(pc.is_null(values).to_numpy(zero_copy_only=False))[0])
        raise RowFailure(row, RecordError(f"column {name!r} has no event time."))
    found: Moments
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        moments = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        found = moments.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return found
    if pa.types.is_integer(kind):
        found = values.to_numpy(zero_copy_only=False).astype(np.int64) * 1_000_000
        return found
    if pa.types.is_floating(kind):
        seconds = values.to_numpy(zero_copy_only=False).astype(np.float64)
        found = np.round(seconds * 1e6).astype(np.int64)
        return found
    raise RecordError(
        f"operator {operator!r} reads column {name!r}, which holds {kind}, not event times.",
        hint="Use timestamps, dates, or seconds as numbers.",
    )


def _as_type(moments: Moments, kind: pa.DataType) -> pa.Array:
    """Microseconds in the type of the time column; for numbers, seconds as floats."""
    if pa.types.is_timestamp(kind):
        return pa.array(moments, pa.int64()).cast(pa.timestamp("us", kind.tz))
    if pa.types.is_date(kind):
        return pa.array(moments, pa.int64()).cast(pa.timestamp("us"))
    return pa.array(moments / 1e6)
