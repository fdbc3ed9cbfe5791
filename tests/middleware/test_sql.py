"""Rows from SQL and into it, on SQLite."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import (
    GraphError,
    MissingColumnError,
    OperatorError,
    PipelineError,
)
from sage_prefect.middleware import ReadSql, WriteSql

pytest.importorskip("sqlalchemy")


@pytest.fixture
def database(tmp_path: Path, sage_home: Path) -> Path:
    path = tmp_path / "db.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE items (id INTEGER, name TEXT, price REAL)")
        rows = [(n, f"item {n}", n / 2) for n in range(1, 101)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", [*rows, (None, "odd", 0.0)])
    return path


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def collected(source: ReadSql) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        Pipeline("p").source(source).sink().run().committed.data.to_pylist()
    )
    return rows


@pytest.mark.parametrize("split_by", [None, "id"])
def test_all_rows_come_once(database: Path, split_by: str | None) -> None:
    source = ReadSql("SELECT id, name FROM items;", f"sqlite:///{database}", split_by, parts=7)
    assert len(source.parts()) == (1 if split_by is None else 7)
    found = collected(source)
    assert sorted(str(row["id"]) for row in found) == sorted(
        ["None", *(str(n) for n in range(1, 101))]
    )
    assert all(row["name"] in ("odd", f"item {row['id']}") for row in found)


def test_columns_are_known_and_the_password_is_not_shown(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_DB", f"sqlite:///{database}")
    pipeline = Pipeline("p").source(ReadSql("SELECT * FROM items", "os.environ/THE_DB"))
    with pytest.raises(MissingColumnError, match="Columns at this point: id, name, price"):
        pipeline.sort("nope")
    assert len(collected(ReadSql("SELECT * FROM items", "os.environ/THE_DB"))) == 101
    assert "secret" not in repr(ReadSql("SELECT 1", "postgresql://me:secret@host/db"))
    assert "secret" not in repr(WriteSql("t", "postgresql://me:secret@host/db"))


def test_a_run_never_reuses_what_a_database_said_before(database: Path) -> None:
    source = ReadSql("SELECT * FROM items", f"sqlite:///{database}")
    assert source.parts()[0].key != source.parts()[0].key
    fixed = ReadSql("SELECT * FROM items", f"sqlite:///{database}", version="1")
    assert fixed.parts()[0].key == fixed.parts()[0].key


def test_source_errors(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OperatorError, match=r"no such table: absent.*The query is"):
        collected(ReadSql("SELECT * FROM absent", f"sqlite:///{database}"))
    with pytest.raises(GraphError, match="holds 'item 1', not whole numbers"):
        collected(ReadSql("SELECT * FROM items", f"sqlite:///{database}", "name"))
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(GraphError, match="variable NO_SUCH, which is not set"):
        Pipeline("p").source(ReadSql("SELECT 1", "os.environ/NO_SUCH"))
    with pytest.raises(GraphError, match="cannot be used"):
        Pipeline("p").source(ReadSql("SELECT 1", "nodialect://x"))
    with pytest.raises(GraphError, match="empty query"):
        ReadSql(" ", "sqlite://")
    with pytest.raises(GraphError, match="parts=0"):
        ReadSql("SELECT 1", "sqlite://", parts=0)


ROWS = [
    {"n": n, "t": f"row {n}", "day": dt.date(2026, 11, n + 1), "tags": ["a", str(n)], "x": n / 4}
    for n in range(10)
]


def write(database: Path, rows: list[dict[str, Any]], mode: Any = "replace") -> Any:
    sink = WriteSql("out", f"sqlite:///{database}", mode)
    return Pipeline("p").source(rows).sink(sink).run(partitions=3)


def test_modes(database: Path) -> None:
    assert write(database, ROWS).committed.rows == 10
    found = query(database, "SELECT n, t, day, tags, x FROM out ORDER BY n")
    assert found[3] == (3, "row 3", "2026-11-04", '["a","3"]', 0.75)
    write(database, ROWS[:4])
    assert query(database, "SELECT count(*) FROM out") == [(4,)]
    write(database, ROWS[:4], "append")  # meant twice: written twice
    assert query(database, "SELECT count(*) FROM out") == [(8,)]
    with pytest.raises(GraphError, match="mode='upsert'"):
        WriteSql("out", "sqlite://", "upsert")  # type: ignore[arg-type]


def test_no_rows_empty_the_table_each_time(database: Path) -> None:
    for _ in range(2):
        write(database, ROWS)
        nothing = Pipeline("p").source(ROWS).filter(lambda row: False)
        report = nothing.sink(WriteSql("out", f"sqlite:///{database}")).run()
        assert report.committed.rows == 0
        assert query(database, "SELECT count(*) FROM out") == [(0,)]


def test_a_commit_that_is_repeated_adds_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after the transaction, before the staged files are removed."""
    monkeypatch.setattr("sage_prefect.middleware.write_sql.discard", lambda *_: None)
    sink = WriteSql("out", f"sqlite:///{database}", "append")
    import pyarrow as pa

    receipt = sink.write("ab" * 16, 0, iter([pa.RecordBatch.from_pylist(ROWS)]))
    assert sink.commit([receipt]).rows == 10
    assert sink.commit([receipt]).rows == 10
    assert query(database, "SELECT count(*) FROM out") == [(10,)]


def test_rows_that_do_not_fit_leave_the_table_as_it_was(database: Path) -> None:
    write(database, ROWS)
    with pytest.raises(PipelineError, match=r"refuses the rows of table 'out'.*extra"):
        write(database, [{"n": 1, "extra": 2}])
    assert query(database, "SELECT count(*) FROM out") == [(10,)]
