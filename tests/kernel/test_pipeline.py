"""Building a pipeline: what is checked before anything runs, and what a run accounts for."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect import Pipeline, Resources, operator
from sage_prefect.common.errors import (
    AccountingError,
    EmptySourceError,
    MissingColumnError,
    OperatorError,
    PipelineError,
)
from sage_prefect.kernel.operator import Operator, RowFailure
from sage_prefect.kernel.sink import Collect

ROWS = [{"text": f"row {number}", "number": number} for number in range(100)]


@operator("length", reads=("text",), adds=("length",), batch_size=7)
class Length:
    def __init__(self, factor: int = 1) -> None:
        self.factor = factor
        self.sizes: list[int] = []

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.sizes.append(batch.num_rows)
        values = [len(text) * self.factor for text in batch.column("text").to_pylist()]
        return batch.append_column("length", pa.array(values))


def table(report) -> list[dict]:
    return report.committed.data.to_pylist()


def test_operators_and_functions_mix():
    report = (
        Pipeline("mix")
        .source(ROWS)
        .map(Length(factor=2))
        .filter(lambda row: row["number"] % 2 == 0, name="even")
        .flat_map(lambda row: [{**row, "copy": copy} for copy in range(2)], name="twice")
        .map(lambda row: {"last": row["text"][-1]}, adds=("last",), name="last")
        .sink()
        .run(partitions=2)
    )
    expected = [
        {**row, "length": 2 * len(row["text"]), "copy": copy, "last": row["text"][-1]}
        for row in ROWS
        if row["number"] % 2 == 0
        for copy in range(2)
    ]
    assert table(report) == expected
    assert report.rows_read == 100
    assert report.committed.rows == 100
    counts = report.summary()[0].operators
    assert (counts["even"].rows_in, counts["even"].rows_out) == (100, 50)
    assert (counts["twice"].rows_in, counts["twice"].rows_out) == (50, 100)


def test_missing_column_names_operator_column_and_columns():
    with pytest.raises(MissingColumnError) as caught:
        Pipeline("p").source([{"txt": "a"}]).map(Length())
    assert "'length' reads column 'text'" in str(caught.value)
    assert "Did you mean 'txt'?" in str(caught.value)
    assert "Columns at this point: txt" in str(caught.value)


def test_missing_column_behind_an_added_one():
    with pytest.raises(MissingColumnError, match="'nope'"):
        Pipeline("p").source(ROWS).map(Length()).filter(lambda row: True, reads=("nope",))


def test_sink_columns_are_checked():
    class Needs(Collect):
        reads = ("embedding",)

    with pytest.raises(MissingColumnError, match="embedding"):
        Pipeline("p").source(ROWS).sink(Needs())


def test_columns_are_open_behind_a_function_that_replaces_rows():
    pipeline = Pipeline("p").source(ROWS).map(lambda row: {"other": 1}).map(Length())
    with pytest.raises(OperatorError, match="'length' failed in partition 1/"):
        pipeline.sink().run()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Pipeline(""), "is empty"),
        (lambda: Pipeline("p", band="urgent"), "band 'urgent'"),
        (lambda: Pipeline("p").map(Length()), "before any source"),
        (lambda: Pipeline("p").source("a.txt"), "is not a source"),
        (lambda: Pipeline("p").source(ROWS).source(ROWS), "has a source already"),
        (lambda: Pipeline("p").source(ROWS).sink().map(Length()), "after sink"),
        (lambda: Pipeline("p").source(ROWS).map(Length), "is a class"),
        (lambda: Pipeline("p").source(ROWS).map(3), "neither an operator nor a function"),
        (lambda: Pipeline("p").source(ROWS).map(Length(), adds=("x",)), "declares its own"),
        (lambda: Pipeline("p").source(ROWS).map(Length(), on_error="ignore"), "'ignore'"),
        (lambda: Pipeline("p").source(ROWS).plan(), "has no sink"),
        (lambda: Pipeline("p").source(ROWS).sink().plan(partitions=0), "partitions=0"),
        (lambda: Pipeline("p").source(ROWS).sink().run(reuse="sometimes"), "'sometimes'"),
        (lambda: Resources(cpu=-1), "cpu=-1"),
        (lambda: Resources(memory="lots"), "'lots' is not a size"),
        (lambda: operator("x", reads="text"), "no tuple of columns"),
        (lambda: operator("x", colour=1), "unknown 'colour'"),
    ],
)
def test_wrong_use_is_named(build, words):
    with pytest.raises(Exception, match=words):
        build()


def test_empty_source():
    with pytest.raises(EmptySourceError, match="no rows"):
        Pipeline("p").source([]).sink().run()


def test_failure_names_operator_partition_and_row():
    def fails(row):
        if row["number"] == 70:
            raise ValueError("seventy")
        return {"ok": True}

    with pytest.raises(OperatorError) as caught:
        Pipeline("p").source(ROWS).map(fails, adds=("ok",)).sink().run(partitions=2)
    assert caught.value.operator == "fails"
    assert caught.value.partition == "2/2 (rows 64..99)"
    assert caught.value.row == 6
    assert "ValueError: seventy" in str(caught.value)


def test_dead_letters_take_only_the_failing_rows():
    def fails(row):
        if row["number"] % 10 == 3:
            raise ValueError(f"bad {row['number']}")
        return {"ok": True}

    report = (
        Pipeline("p").source(ROWS).map(fails, adds=("ok",), on_error="dead_letter").sink().run()
    )
    assert report.committed.rows == 90
    assert [letter.row["number"] for letter in report.dead_letters] == list(range(3, 100, 10))
    assert report.dead_letters[0].error == "ValueError: bad 3"
    assert report.summary()[0].operators["fails"].dead == 10


def test_when_all_is_set_aside_the_reason_is_named():
    def fails(row):
        raise ValueError(f"bad {row['number']}")

    pipeline = Pipeline("p").source(ROWS[:3]).map(fails, adds=(), on_error="dead_letter").sink()
    with pytest.raises(PipelineError, match=r"3 dead letter\(s\).*ValueError: bad 0"):
        pipeline.run()


@given(bad=st.sets(st.integers(0, 39)), size=st.integers(1, 17))
def test_a_batch_operator_is_narrowed_down_to_its_bad_rows(bad, size):
    class Picky(Operator):
        name = "picky"
        batch_size = size

        def process(self, batch):
            if bad & set(batch.column("number").to_pylist()):
                raise ValueError("somewhere in here")
            return batch

    report = (
        Pipeline("p")
        .source(ROWS[:40])
        .map(Picky(), on_error="dead_letter")
        .sink()
        .run(partitions=1)
    )
    assert {letter.row["number"] for letter in report.dead_letters} == bad
    assert [row["number"] for row in table(report)] == [n for n in range(40) if n not in bad]


def test_a_row_lost_by_an_operator_is_an_error():
    class Loses(Operator):
        name = "loses"

        def process(self, batch):
            return batch.slice(1)

    with pytest.raises(AccountingError, match=r"got \d+ row\(s\) and gave"):
        Pipeline("p").source(ROWS).map(Loses()).sink().run()


def test_retryable_errors_are_retried_then_fail_with_the_operator():
    attempts: list[int] = []
    delays: list[float] = []

    def flaky(row):
        attempts.append(row["number"])
        raise ConnectionError("engine llm refused")

    with pytest.raises(OperatorError, match="engine llm refused"):
        Pipeline("p").source(ROWS[:1]).map(flaky).sink().run(retries=2, sleep=delays.append)
    assert len(attempts) == 3
    assert delays == [0.5, 1.0]


def test_other_errors_are_not_retried():
    attempts: list[int] = []

    def broken(row):
        attempts.append(1)
        raise ValueError("no")

    with pytest.raises(OperatorError):
        Pipeline("p").source(ROWS[:1]).map(broken).sink().run(retries=5, sleep=lambda s: None)
    assert len(attempts) == 1


def test_operators_travel_as_class_and_parameters():
    original = Length(factor=3)
    original.handle = object()  # what setup() opened must not travel
    original.sizes.append(1)
    copied = pickle.loads(pickle.dumps(original))
    assert copied.params == {"factor": 3}
    assert copied.sizes == []
    assert not hasattr(copied, "handle")
    assert copied.content_key() == original.content_key()
    assert copied.content_key() != Length(factor=4).content_key()


def test_second_use_of_a_name_is_told_apart():
    pipeline = Pipeline("p").source(ROWS).map(Length()).map(Length(factor=2)).sink()
    assert pipeline.plan().stages[0].name == "collection+length+length-2+collect"


def test_building_leaves_the_original_as_it_was():
    base = Pipeline("p").source(ROWS)
    base.map(Length())
    assert base.sink().plan().stages[0].name == "collection+collect"


def test_row_failure_counts_from_the_batch():
    class Third(Operator):
        name = "third"
        batch_size = 5

        def process(self, batch):
            if 12 in batch.column("number").to_pylist():
                raise RowFailure(2, ValueError("third of its batch"))
            return batch

    with pytest.raises(OperatorError) as caught:
        Pipeline("p").source(ROWS).map(Third()).sink().run(partitions=1)
    assert caught.value.row == 12
