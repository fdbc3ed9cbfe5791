"""What no worker can ever run is refused, with names."""

from __future__ import annotations

import pytest

from sage_prefect.common.errors import ClusterError, UnschedulableError
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.resources import Resources
from sage_prefect.orchestration.preflight import check_schedulable

OFFERS = {"cpu-0": {"CPU": 2.0, "MEMORY": 4e9}, "gpu-0": {"GPU": 1.0, "label:eu": 1e6}}


def plan(wish: Resources):
    pipeline = Pipeline("p").source([{"a": 1}]).map(_same, name="same", resources=wish)
    return pipeline.sink().plan()


def _same(row):
    return row


@pytest.mark.parametrize(
    "wish",
    [
        Resources(),
        Resources(cpu=2),
        Resources(cpu=1, memory="4GB"),
        Resources(gpu=0.5, labels=("eu",)),
    ],
)
def test_what_some_worker_can_meet(wish):
    check_schedulable(plan(wish), OFFERS)


@pytest.mark.parametrize(
    "wish",
    [Resources(cpu=3), Resources(cpu=1, gpu=1), Resources(gpu=1, labels=("us",))],
)
def test_what_none_can_meet(wish):
    with pytest.raises(UnschedulableError) as caught:
        check_schedulable(plan(wish), OFFERS)
    text = str(caught.value)
    assert "'same'" in text
    assert "cpu-0: CPU=2, MEMORY=4e+09; gpu-0: GPU=1, label:eu" in text


def test_no_workers():
    with pytest.raises(ClusterError, match="no workers"):
        check_schedulable(plan(Resources()), {})
