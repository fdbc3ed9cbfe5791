"""Operators as Prefect tasks: kinds of rows, options, errors."""

from __future__ import annotations

import pickle

import cloudpickle
import pyarrow as pa
import pytest

from sage_prefect.common.errors import GraphError, MissingColumnError, OperatorError
from sage_prefect.kernel.operator import Operator, operator
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.sink import Collect
from sage_prefect.kernel.source import CollectionSource
from sage_prefect.orchestration.operator_task import apply_operator, operator_task

ROWS = [{"a": 1}, {"a": 2}, {"a": 3}]


@operator("double", reads=("a",), adds=("b",))
def double(row):
    return {"b": row["a"] * 2}


class OnlyOdd(Operator):
    name = "only-odd"
    cardinality = "fewer"
    reads = ("a",)

    def process(self, batch):
        return batch.filter(pa.array([a % 2 == 1 for a in batch.column("a").to_pylist()]))


def test_rows_come_back_as_they_came():
    expected = [{"a": 1, "b": 2}, {"a": 2, "b": 4}, {"a": 3, "b": 6}]
    assert apply_operator(double, ROWS) == expected
    batch = apply_operator(double, pa.RecordBatch.from_pylist(ROWS))
    assert isinstance(batch, pa.RecordBatch)
    assert batch.to_pylist() == expected
    chunks = [pa.Table.from_pylist(ROWS[:1]), pa.Table.from_pylist(ROWS[1:])]
    table = apply_operator(double, pa.concat_tables(chunks))
    assert isinstance(table, pa.Table)
    assert table.to_pylist() == expected


@pytest.mark.parametrize(
    "rows", [[], pa.table({"a": [2]}).slice(0, 0), pa.record_batch({"a": [2]}), [{"a": 2}]]
)
def test_no_rows_in_or_out(rows):
    left = apply_operator(OnlyOdd(), rows)
    assert type(left) is type(rows)
    assert len(left) == 0 if isinstance(left, list) else left.num_rows == 0


def test_wrong_input_is_named():
    with pytest.raises(MissingColumnError, match="'double' reads column 'a'"):
        apply_operator(double, [{"b": 1}])
    with pytest.raises(GraphError, match="got str"):
        apply_operator(double, "abc")
    with pytest.raises(OperatorError, match=r"'double' failed in partition .*row 1"):
        apply_operator(double, [{"a": 1}, {"a": None}])


def test_options_of_the_task():
    task = operator_task(OnlyOdd(), retries=2, resources=Resources(gpu=1), tags=["mine"])
    assert task.name == "only-odd"
    assert task.counters == {"GPU": 1.0}
    assert task.tags == {"operator:only-odd", "resource:gpu", "mine"}
    assert (task.retries, task.retry_delay_seconds) == (2, [2.0, 4.0])
    renamed = task.with_options(name="other", retries=0)
    assert (renamed.name, renamed.retries, renamed.counters) == ("other", 0, {"GPU": 1.0})


def test_task_travels_and_runs_elsewhere():
    task = pickle.loads(cloudpickle.dumps(operator_task(OnlyOdd(), retries=1)))
    assert task.fn(ROWS) == [{"a": 1}, {"a": 3}]
    assert task.retries == 1


@pytest.mark.parametrize("end", [CollectionSource(ROWS), Collect()])
def test_sources_and_sinks_are_no_tasks(end):
    with pytest.raises(GraphError, match="works on no rows"):
        operator_task(end)
