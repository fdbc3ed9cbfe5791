"""Stages as Prefect tasks: names, tags, placement, retries; splitting by operator."""

from __future__ import annotations

import pytest
from prefect.states import Completed, Failed

from sage_prefect.common.errors import OperatorError
from sage_prefect.kernel.operator import operator
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.retries import retry_delays
from sage_prefect.kernel.stage import run_stage
from sage_prefect.orchestration.stage_task import (
    StageCall,
    run_stage_call,
    split_by_operator,
    stage_task,
    worth_a_retry,
)


@operator("double", reads=("a",), adds=("b",))
def double(row):
    return {"b": row["a"] * 2}


@operator("increment", reads=("b",), adds=("c",))
def increment(row):
    return {"c": row["b"] + 1}


def plan(on_error="retry"):
    return (
        Pipeline("numbers")
        .source([{"a": a} for a in range(200)])
        .map(double, resources=Resources(cpu=1))
        .map(increment, resources=Resources(gpu=1), on_error=on_error)
        .sink()
        .plan(partitions=3)
    )


def test_task_of_a_stage():
    made = plan()
    task = stage_task(made, made.stages[1], retries=2, retry_delay_s=0.5)
    assert task.name == "increment+collect"
    assert task.tags == {"pipeline:numbers", "stage:increment+collect", "resource:gpu"}
    assert (task.counters, task.priority) == ({"GPU": 1.0}, 1)
    assert (task.retries, task.retry_delay_seconds) == (2, [0.5, 1.0])
    call = StageCall(made.stages[1], made.partitions[2], made.context)
    assert task.task_run_name.format(call=call) == "increment+collect[3/3]"


def test_fail_means_no_retries():
    made = plan(on_error="fail")
    assert stage_task(made, made.stages[1], retries=2, retry_delay_s=1).retries == 0


def test_delays_double_up_to_a_bound():
    assert retry_delays(3, 2.0) == [2.0, 4.0, 8.0]
    assert retry_delays(20, 1.0)[-1] == 60.0
    assert retry_delays(0, 1.0) == []


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (OperatorError("embed", "engine is down", retryable=True), True),
        (OperatorError("embed", "no such model"), False),
        (ValueError("bug"), False),
    ],
)
def test_only_errors_that_may_pass_are_retried(error, worth):
    assert worth_a_retry(None, None, Failed(data=error)) is worth


def test_nothing_to_retry_in_success():
    assert not worth_a_retry(None, None, Completed(data=1))


def test_split_by_operator_gives_the_same_rows():
    fused, split = plan(), split_by_operator(plan())
    assert [stage.name for stage in split.stages] == [
        "collection",
        "double",
        "increment",
        "collect",
    ]
    assert [str(stage.resources) for stage in split.stages] == ["cpu=1", "cpu=1", "gpu=1", "gpu=1"]
    assert [p.key for p in split.partitions] == [p.key for p in fused.partitions]
    assert all(len(p.keys) == len(split.stages) for p in split.partitions)

    def rows(made):
        found = []
        for partition in made.partitions:
            output = None
            for stage in made.stages:
                output = run_stage(stage, partition, made.context, output)
            found += output.receipt.data.to_pylist()
        return found

    assert rows(split) == rows(fused)
    assert len(rows(fused)) == 200


def test_without_dask_and_prefect_a_call_still_runs():
    made = plan()
    output = run_stage_call(StageCall(made.stages[0], made.partitions[0], made.context))
    assert output.rows > 0
    assert output.reports[-1].worker == "threads"
    assert output.reports[-1].retries == 0
