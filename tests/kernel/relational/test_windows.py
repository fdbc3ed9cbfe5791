"""Windows over event time."""

from __future__ import annotations

import datetime
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, OperatorError
from sage_prefect.kernel.relational.windows import microseconds

TIMES = st.lists(st.integers(0, 300), min_size=1, max_size=50)


def run(rows, partitions, **window):
    pipeline = Pipeline("p").source(rows).key_by("k").window("t", **window).aggregate(n="count")
    return pipeline.sink().run(partitions=partitions)


def found(report):
    return {
        (row["k"], row["window_start"], row["window_end"]): row["n"]
        for row in report.committed.data.to_pylist()
    }


@settings(max_examples=25)
@given(TIMES, st.integers(1, 4), st.sampled_from([(60, 60), (60, 20), (50, 30)]))
def test_each_row_is_in_each_of_its_windows(times, partitions, sizes):
    size, slide = sizes
    rows = [{"k": t % 2, "t": t} for t in times]
    wanted = Counter(
        (row["k"], float(start), float(start + size))
        for row in rows
        for start in range(-size, 301, 1)
        if start % slide == 0 and start <= row["t"] < start + size
    )
    assert found(run(rows, partitions, size=size, slide=slide)) == wanted


@settings(max_examples=25)
@given(TIMES, st.integers(1, 4), st.integers(0, 40))
def test_late_rows_are_counted_whatever_the_partitions(times, partitions, lateness):
    rows = [{"k": t % 3, "t": t} for t in times]
    marks: dict[int, int] = {}
    late = []
    for row in rows:
        mark = marks.get(row["k"], -1)
        if row["t"] // 10 * 10 + 10 + lateness <= mark:
            late.append(row)
        marks[row["k"]] = max(mark, row["t"])
    if len(late) == len(rows):
        return
    report = run(rows, partitions, size=10, lateness=lateness)
    assert Counter(tuple(letter.row.items()) for letter in report.dead_letters) == Counter(
        tuple(row.items()) for row in late
    )
    assert sum(found(report).values()) + len(late) == len(rows)
    assert all(letter.error.startswith("late") for letter in report.dead_letters)
    assert sum(stage.dead for stage in report.summary()) == len(late)


def test_timestamps_keep_their_type():
    day = datetime.datetime(2026, 11, 27, tzinfo=datetime.timezone.utc)
    rows = [{"k": 1, "t": day + datetime.timedelta(minutes=m)} for m in (0, 4, 5, 11)]
    report = run(rows, 2, size="5m")
    assert sorted(found(report).items()) == [
        ((1, day, day + datetime.timedelta(minutes=5)), 2),
        ((1, day + datetime.timedelta(minutes=5), day + datetime.timedelta(minutes=10)), 1),
        ((1, day + datetime.timedelta(minutes=10), day + datetime.timedelta(minutes=15)), 1),
    ]


def test_rows_without_a_time_are_named():
    rows = [{"k": 1, "t": 5}, {"k": 1, "t": None}]
    with pytest.raises(OperatorError, match=r"'window' failed.*row 1.*column 't' has no event"):
        run(rows, 1, size=10)
    with pytest.raises(GraphError, match="reads column 't' as time or number, but it holds text"):
        run([{"k": 1, "t": "noon"}], 1, size=10)
    noon = Pipeline("p").source([{"t": "noon"}]).map(dict).window("t", 10).sink()
    with pytest.raises(OperatorError, match=r"holds string, not event times.*Declared at"):
        noon.run()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("250ms", 250_000),
        (1.5, 1_500_000),
        ("2h", 7_200_000_000),
        (datetime.timedelta(seconds=3), 3_000_000),
    ],
)
def test_durations(value, expected):
    assert microseconds(value) == expected


@pytest.mark.parametrize(
    "window", [{"size": "soon"}, {"size": 0}, {"size": 5, "slide": 6}, {"size": 5, "lateness": -1}]
)
def test_windows_that_make_no_sense(window):
    with pytest.raises(GraphError, match=r"Declared at .*test_windows.py:\d+"):
        Pipeline("p").source([{"t": 1}]).window("t", **window)
