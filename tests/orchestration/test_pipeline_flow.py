"""Flows of pipelines: parameters, options, what travels."""

from __future__ import annotations

import inspect
import pickle

import cloudpickle
import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from sage_prefect.common.errors import GraphError, UnknownNameError
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.orchestration.pipeline_flow import pipeline_flow
from sage_prefect.orchestration.task_runner import SageTaskRunner, StockTaskRunner


def pipeline():
    return Pipeline("numbers").source([{"a": 1}]).map(lambda row: row, name="same").sink()


def test_parameters_show_as_a_form():
    schema = pipeline_flow(pipeline(), partitions=3, reuse="always").parameters.properties
    assert list(schema) == ["partitions", "reuse", "retries", "retry_delay_s", "max_in_flight"]
    assert schema["partitions"]["default"] == 3
    assert schema["reuse"]["default"] == "always"
    assert schema["reuse"]["enum"] == ["always", "unfinished", "never"]
    assert all(field["description"] for field in schema.values())


def test_flow_is_async_and_named():
    flow = pipeline_flow(pipeline())
    assert flow.name == "numbers"
    assert inspect.iscoroutinefunction(flow.fn)
    assert pipeline_flow(pipeline(), name="other").name == "other"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, SageTaskRunner),
        ({"runner": "stock"}, StockTaskRunner),
        ({"cluster": "threads"}, ThreadPoolTaskRunner),
    ],
)
def test_task_runners(options, kind):
    assert type(pipeline_flow(pipeline(), **options).task_runner) is kind


def test_the_settings_choose_the_runner(monkeypatch):
    monkeypatch.setenv("SAGE_PIPELINES__RUNNER", "stock")
    assert type(pipeline_flow(pipeline()).task_runner) is StockTaskRunner


def test_incomplete_pipelines_and_unknown_options():
    with pytest.raises(GraphError, match="no source"):
        pipeline_flow(Pipeline("empty"))
    with pytest.raises(GraphError, match="no sink"):
        pipeline_flow(Pipeline("open").source([{"a": 1}]))
    with pytest.raises(UnknownNameError, match=r"granularity 'stages'.*'stage'"):
        pipeline_flow(pipeline(), granularity="stages")
    with pytest.raises(UnknownNameError, match="runner 'dask'"):
        pipeline_flow(pipeline(), runner="dask")


def test_a_served_flow_takes_its_rows_along():
    flow = pickle.loads(cloudpickle.dumps(pipeline_flow(pipeline())))
    assert flow.validate_parameters({"partitions": 2})["partitions"] == 2
    carried = inspect.getclosurevars(flow.fn).nonlocals["carried"]
    assert carried.pipeline._source.rows == [{"a": 1}]
