"""What a run shows of each request, live or simulated: columns, one row per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_bench.load.record import RequestRecord
from sage_bench.simulation.records import Outcome, Records
from sage_prefect.common.errors import BenchmarkError

Array = NDArray[np.float64]
METRICS = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True)
class Observation:
    """One run; rows in the order of arrival.

    Args:
        workloads: of each request.
        at_s: planned arrival.
        done: whether the whole answer came.
        metrics: seconds by name (:data:`METRICS`); NaN where a request has no such figure: TTFT
            and TPOT are of streams only.
    """

    workloads: NDArray[np.str_]
    at_s: Array
    done: NDArray[np.bool_]
    metrics: dict[str, Array]

    def __len__(self) -> int:
        return len(self.at_s)


def of_records(records: Sequence[RequestRecord], workloads: Sequence[str]) -> Observation:
    """A live run. ``workloads``: of each request by its index."""
    ordered = sorted(records, key=lambda record: record.index)
    return Observation(
        np.array([workloads[record.index] for record in ordered]),
        np.array([record.scheduled_s for record in ordered]),
        np.array([record.ok for record in ordered]),
        {name: np.array([_known(getattr(record, name)) for record in ordered]) for name in METRICS},
    )


def of_simulation(records: Records) -> Observation:
    """A simulated run."""
    columns = records.columns()
    order = np.argsort(columns["at"], kind="stable")
    traffic = columns["traffic"][order].astype(int)
    names = np.array([one.name for one in records.traffics])[traffic]
    streams = np.array([one.stream for one in records.traffics])[traffic]
    metrics = {name: columns[name][order] for name in METRICS}
    for name in ("ttft_s", "tpot_s"):
        metrics[name] = np.where(streams, metrics[name], np.nan)
    done = columns["outcome"][order] == int(Outcome.DONE)
    return Observation(names, columns["at"][order], done, metrics)


def check_same_arrivals(one: Observation, other: Observation) -> None:
    """Raises BenchmarkError unless both runs had the same requests at the same times."""
    if len(one) != len(other) or not np.array_equal(one.workloads, other.workloads):
        raise BenchmarkError(
            f"two runs of {len(one)} and {len(other)} requests are not of the same arrivals."
        )
    if not np.allclose(one.at_s, other.at_s, rtol=0, atol=1e-9):
        raise BenchmarkError("two runs are not of the same arrival times.")


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
