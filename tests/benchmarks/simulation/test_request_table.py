"""Single requests of a simulation as Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sage_bench.simulation.records import Outcome, Records
from sage_bench.simulation.request_table import RequestFiles, request_table
from sage_bench.workloads.client_request import ClientRequest, Traffic

NAN = float("nan")


def records(count: int) -> Records:
    """Every third request is refused by the gateway before any engine saw it."""
    made = Records(["e-0", "e-1"])
    chat, batch = Traffic("chat", "m"), Traffic("batch", "m")
    for number in range(count):
        refused = number % 3 == 2
        made.add(
            ClientRequest(float(number), batch if number % 2 else chat, f"t{number % 5}", 100, 7),
            Outcome.REJECTED if refused else Outcome.DONE,
            queued_s=0.5,
            ttft_s=NAN if refused else 1.0,
            e2e_s=NAN if refused else 2.0,
            tpot_s=NAN if refused else 0.1,
            max_gap_s=NAN if refused else 0.2,
            retry_after_s=3.0 if refused else NAN,
            cached=0,
            attempts=0 if refused else 1,
            status=429 if refused else 200,
            engine=-1 if refused else number % 2,
        )
    return made


def test_a_row_says_what_became_of_a_request() -> None:
    rows = request_table(records(3), 10).to_pylist()
    assert rows[1] == {
        "workload": "batch",
        "tenant": "t1",
        "outcome": "done",
        "engine": "e-1",
        "at_s": 1.0,
        "queued_s": 0.5,
        "ttft_s": 1.0,
        "e2e_s": 2.0,
        "tpot_s": 0.1,
        "max_gap_s": 0.2,
        "retry_after_s": None,
        "prompt_tokens": 100,
        "output_tokens": 7,
        "cached_tokens": 0,
        "attempts": 1,
        "status": 200,
    }
    refused = rows[2]
    assert (refused["outcome"], refused["engine"], refused["ttft_s"]) == ("rejected", None, None)
    assert (refused["status"], refused["retry_after_s"]) == (429, 3.0)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 7), (1000, 1)])
def test_it_is_bounded_and_evenly_spaced(count: int, most: int) -> None:
    table = request_table(records(count), most)
    assert table.num_rows == min(count, most)
    at = np.asarray(table["at_s"])
    if most > 1 and count > most:
        assert (at[0], at[-1]) == (0.0, count - 1)
        assert np.ptp(np.diff(at)) <= 1.0


def test_files_read_together_as_one_table(tmp_path: Path) -> None:
    files = RequestFiles(tmp_path / "requests", 4)
    files.write(records(9), "fifo", "fifo", 0, 0)
    files.write(records(2), "tuned", "tuned (max_num_seqs=4)", 3, 1)
    files.write(records(0), "fifo", "fifo", 1, 2)
    table = pq.read_table(tmp_path / "requests")
    assert table.num_rows == 6
    assert table["variant"].to_pylist() == ["fifo"] * 4 + ["tuned (max_num_seqs=4)"] * 2
    assert table["seed"].to_pylist() == [0] * 4 + [3] * 2
