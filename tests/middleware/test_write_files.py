from __future__ import annotations

import datetime as dt
import decimal
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, PipelineError
from sage_prefect.kernel.commit_log import MemoryStore
from sage_prefect.kernel.sink import Receipt
from sage_prefect.middleware import WriteCsv, WriteJsonl, WriteParquet


def batches(*rows: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    return iter([pa.RecordBatch.from_pylist(list(rows))])


def read(path: str | Path) -> list[dict[str, Any]]:
    if str(path).endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_csv(tmp_path: Path) -> None:
    rows = [{"n": 1, "t": 'say "hi", twice', "v": [1.5, 2.0]}, {"n": None, "t": "", "v": None}]
    path = tmp_path / "out.csv"
    report = Pipeline("p").source(rows).sink(WriteCsv(path)).run()
    assert report.committed.rows == 2
    assert path.read_text().splitlines() == [
        '"n","t","v"',
        '1,"say ""hi"", twice","[1.5,2.0]"',
        ',"",',
    ]


SINKS = pytest.mark.parametrize("kind", [WriteParquet, WriteJsonl])


@SINKS
def test_a_name_lies_under_results(kind: Any, sage_home: Path) -> None:
    rows = [{"n": n} for n in range(10)]
    report = Pipeline("p").source(rows).sink(kind("answers")).run(partitions=3)
    path = Path(report.committed.location)
    assert path == sage_home / "data" / "results" / f"answers{kind.suffix}"
    assert read(path) == rows
    assert report.committed.rows == 10
    # Nothing but the file is in sight.
    assert [f.name for f in path.parent.iterdir() if not f.name.startswith(".")] == [path.name]


@SINKS
def test_a_path_is_the_callers(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = kind(f"out{kind.suffix}")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(sink))
    assert again.path == tmp_path / f"out{kind.suffix}"
    assert kind("~/x/y").path == Path.home() / "x" / "y"


@SINKS
def test_order_is_that_of_the_source(kind: Any) -> None:
    sink = kind("r")
    receipts = [sink.write(f"k{n}", n, batches({"n": n})) for n in (2, 0, 1)]
    committed = sink.commit(receipts)
    assert [row["n"] for row in read(committed.location)] == [0, 1, 2]


@SINKS
def test_until_the_commit_readers_see_the_old_file(kind: Any) -> None:
    old = kind("r").commit([kind("r").write("a", 0, batches({"n": 1}))])
    sink = kind("r")
    receipt = sink.write("b", 0, batches({"n": 2}))
    # The run is killed here; the next one finds the partition and commits it.
    assert read(old.location) == [{"n": 1}]
    assert sink.current(old)
    again = kind("r")
    assert again.holds(receipt)
    assert read(again.commit([receipt]).location) == [{"n": 2}]
    assert not again.current(old)


@SINKS
def test_commit_is_idempotent(kind: Any) -> None:
    sink = kind("r")
    receipts = [sink.write("a", 0, batches({"n": 1}))]
    first = sink.commit(receipts)
    status = Path(first.location).stat()
    assert not sink.holds(receipts[0])
    assert kind("r").commit(receipts) == first
    assert Path(first.location).stat().st_mtime_ns == status.st_mtime_ns


@SINKS
def test_rows_staged_again_replace_those_of_the_same_partition(kind: Any) -> None:
    """The same question asked again: same content key, another answer and latency."""
    old = kind("r").commit([kind("r").write("a", 0, batches({"n": 1}))])
    new = kind("r").commit([kind("r").write("a", 0, batches({"n": 2}))])
    assert read(new.location) == [{"n": 2}]
    assert new.detail["commit"] != old.detail["commit"]


@SINKS
def test_a_file_that_somebody_changed_is_not_current(kind: Any) -> None:
    sink = kind("r")
    receipts = [sink.write("a", 0, batches({"n": 1}))]
    committed = sink.commit(receipts)
    Path(committed.location).write_text("changed")
    assert not sink.current(committed)
    with pytest.raises(PipelineError, match="is gone"):
        sink.commit(receipts)
    Path(committed.location).unlink()
    assert not sink.current(committed)


@SINKS
def test_an_error_while_composing_leaves_the_old_file(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = kind("r").commit([kind("r").write("a", 0, batches({"n": 1}))])
    sink = kind("r")
    receipt = sink.write("b", 0, batches({"n": 2}))

    def broken(self: Any, target: Path, *rest: Any) -> int:
        target.write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "compose", broken)
        with pytest.raises(OSError, match="disk full"):
            sink.commit([receipt])
    assert read(old.location) == [{"n": 1}]
    assert sink.holds(receipt)
    assert read(sink.commit([receipt]).location) == [{"n": 2}]


@SINKS
def test_no_rows_give_an_empty_file(kind: Any) -> None:
    sink = kind("r")
    empty = sink.write("a", 0, iter([]))
    assert empty == Receipt("a", 0, 0, "")
    assert sink.holds(empty)
    assert read(sink.commit([empty]).location) == []


@SINKS
def test_columns_that_only_some_partitions_have(kind: Any) -> None:
    sink = kind("r")
    receipts = [
        sink.write("a", 0, batches({"n": None})),
        sink.write("b", 1, batches({"n": 1, "t": "x"})),
    ]
    rows = read(sink.commit(receipts).location)
    assert rows == [{"n": None, "t": None}, {"n": 1, "t": "x"}]


def test_json_forms() -> None:
    sink = WriteJsonl("r")
    row = {
        "when": dt.datetime(2026, 1, 2, 3, 4, 5),
        "bytes": b"\x00\x01",
        "money": decimal.Decimal("1.50"),
        "nan": float("nan"),
        "list": [1.0, 2.0],
        "struct": {"a": None},
        "text": "ü\n",
    }
    committed = sink.commit([sink.write("a", 0, batches(row))])
    assert read(committed.location) == [
        {
            "when": "2026-01-02T03:04:05",
            "bytes": "AAE=",
            "money": "1.50",
            "nan": None,
            "list": [1.0, 2.0],
            "struct": {"a": None},
            "text": "ü\n",
        }
    ]


@SINKS
def test_a_repeated_run_is_skipped(kind: Any) -> None:
    store = MemoryStore()
    pipeline = Pipeline("p").source([{"n": 1}]).sink(kind("r"))
    first = pipeline.run(store=store, reuse="always")
    second = pipeline.run(store=store, reuse="always")
    assert second.committed.detail == first.committed.detail
    Path(first.committed.location).unlink()
    third = pipeline.run(store=store, reuse="always")
    assert read(third.committed.location) == [{"n": 1}]


@pytest.mark.parametrize("name", ["", "a b", ".x"])
def test_names(name: str) -> None:
    with pytest.raises(GraphError):
        WriteParquet(name)
