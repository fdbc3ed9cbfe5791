"""What the Prefect UI is given."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.kernel.report import OperatorReport, RunReport, StageReport
from sage_prefect.kernel.sink import Committed
from sage_prefect.orchestration.artifacts import artifact_key, report_table


@given(st.lists(st.text(), min_size=1))
def test_keys_are_what_prefect_accepts(parts):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", artifact_key(*parts))


def test_one_row_per_stage_and_operator():
    def stage(number, partition, seconds, retries):
        counts = [OperatorReport("embed", 10, 10, 0, 0.5)]
        return StageReport(number, "embed", partition, counts, seconds, retries=retries)

    report = RunReport(
        "p", "run", 3.0, [stage(0, 0, 1.0, 1), stage(0, 1, 3.0, 0)], Committed(20), 2
    )
    whole, operator = report_table(report)
    assert whole["partitions"] == 2
    assert whole["rows in"] == whole["rows out"] == 20
    assert whole["rows/s"] == pytest.approx(5.0)
    assert whole["p95 s"] == 3.0
    assert whole["retries"] == 1
    assert operator["name"] == "- embed"
    assert operator["rows/s"] == pytest.approx(20.0)
    assert set(whole) == set(operator)
