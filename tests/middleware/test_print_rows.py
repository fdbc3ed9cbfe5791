from __future__ import annotations

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, MissingColumnError
from sage_prefect.middleware import Print


def test_prints_the_first_rows_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"n": n, "text": "x" * 500} for n in range(10)]
    report = Pipeline("p").source(rows).sink(Print(limit=3)).run(partitions=4)
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if " n: " in line] == [
        "   1  n: 0",
        "   2  n: 1",
        "   3  n: 2",
    ]
    assert "x" * 197 + "..." in shown
    assert shown.endswith("3 of 10 row(s)\n")
    assert report.committed.rows == 10


def test_some_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Pipeline("p").source([{"a": 1, "b": 2}]).sink(Print(["b"])).run()
    assert capsys.readouterr().out == "   1  b: 2\n1 of 1 row(s)\n"


def test_errors() -> None:
    with pytest.raises(GraphError, match="limit=0"):
        Print(limit=0)
    with pytest.raises(MissingColumnError, match="'x'"):
        Pipeline("p").source([{"a": 1}]).sink(Print(["x"]))
