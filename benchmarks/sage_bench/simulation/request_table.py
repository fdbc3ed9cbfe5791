"""Single requests of a simulation as Parquet: a bounded number of rows, evenly spaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sage_bench.simulation.records import Outcome, Records

_TIMES = ("queued_s", "ttft_s", "e2e_s", "tpot_s", "max_gap_s", "retry_after_s")
_COUNTS = {
    "prompt": "prompt_tokens",
    "output": "output_tokens",
    "cached": "cached_tokens",
    "attempts": "attempts",
    "status": "status",
}


@dataclass(frozen=True)
class RequestFiles:
    """Where the requests of each simulation go, a file each, which read together as one table.

    Args:
        folder: is made when the first file is written.
        most: rows per simulation. Of more requests every k-th is kept, in order of their ends.
    """

    folder: Path
    most: int

    def write(self, records: Records, policy: str, variant: str, seed: int, number: int) -> None:
        """Write simulation ``number`` of the comparison."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = request_table(records, self.most)
        rows = table.num_rows
        for name, value in (("seed", seed), ("variant", variant), ("policy", policy)):
            table = table.add_column(0, name, _repeated(value, rows))
        pq.write_table(table, self.folder / f"{number:04d}.parquet")


def request_table(records: Records, most: int) -> pa.Table:
    """At most ``most`` requests, warm-up included; times in seconds, null where there was none."""
    count = len(records)
    rows = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
    columns = {name: column[rows] for name, column in records.columns().items()}
    table = {
        "workload": _named(columns["traffic"], [traffic.name for traffic in records.traffics]),
        "tenant": _named(columns["tenant"], records.tenants),
        "outcome": _named(columns["outcome"], [outcome.name.lower() for outcome in Outcome]),
        "engine": _named(columns["engine"], records.engines),
        "at_s": pa.array(columns["at"]),
    }
    for name in _TIMES:
        table[name] = pa.array(columns[name], from_pandas=True)
    for name, title in _COUNTS.items():
        table[title] = pa.array(columns[name].astype(np.int32))
    return pa.table(table)


def _named(numbers: NDArray[np.float64], names: list[str]) -> pa.DictionaryArray:
    """Names by number; null for -1."""
    indices = pa.array(numbers.astype(np.int32), mask=numbers < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))


def _repeated(value: str | int, rows: int) -> pa.Array:
    if isinstance(value, int):
        return pa.array(np.full(rows, value, np.int32))
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([value]))
