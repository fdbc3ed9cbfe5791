"""``Print``: rows on the terminal of whoever runs the pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa

from sage_prefect.common.errors import GraphError
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.middleware.columns import column

_WIDTH = 200


class Print(Sink):
    """Print the first rows when the run is done, in the order of the source.

    Args:
        columns: which; None: all.
        limit: how many rows at most.

    Raises:
        GraphError: ``limit`` is not positive.
    """

    name = "print"

    def __init__(self, columns: Sequence[str] | None = None, limit: int = 20) -> None:
        if limit < 1:
            raise GraphError(f"Print(limit={limit}) is not positive.", hint="Use 1 or more.")
        self.columns = tuple(columns) if columns is not None else None
        self.limit = limit
        self.reads = self.columns or ()

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        kept: list[dict[str, object]] = []
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            head = batch.slice(0, self.limit - len(kept))
            if head.num_rows:
                if self.columns is not None:
                    arrays = [column(self.name, head, name) for name in self.columns]
                    head = pa.RecordBatch.from_arrays(arrays, names=list(self.columns))
                kept += head.to_pylist()
        return Receipt(partition, index, rows, data=kept)

    def holds(self, receipt: Receipt) -> bool:
        return receipt.data is not None

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        ordered = sorted(receipts, key=lambda receipt: receipt.index)
        total = sum(receipt.rows for receipt in ordered)
        shown = [row for receipt in ordered for row in receipt.data or ()][: self.limit]
        for number, row in enumerate(shown, start=1):
            for name, value in row.items():
                sys.stdout.write(f"{number:>4}  {name}: {_short(value)}\n")
        sys.stdout.write(f"{len(shown)} of {total} row(s)\n")
        sys.stdout.flush()
        return Committed(total, "stdout")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
