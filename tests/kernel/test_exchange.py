"""Exchanges: files, routes, and what a run does with them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import (
    AccountingError,
    CorruptFileError,
    OperatorError,
    PipelineError,
)
from sage_prefect.kernel import exchange_file
from sage_prefect.kernel.commit_log import CommitLog, MemoryStore
from sage_prefect.kernel.exchange import ExchangeWriter, Route
from sage_prefect.kernel.exchange_file import ExchangeFileWriter, read_section
from sage_prefect.kernel.execution import Run
from sage_prefect.kernel.stage import run_stage
from sage_prefect.platform.run_store import FileRunStore

ROWS = [{"k": number % 5, "n": number} for number in range(400)]
CALLS: list[int] = []
FAIL: list[bool] = []


def batch(**columns):
    return pa.record_batch(columns)


def rows_of(path, section):
    return [row for found in read_section(str(path), section) for row in found.to_pylist()]


def test_sections_keep_their_rows_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange_file, "FLUSH_BYTES", 64)  # several extents per section
    writer = ExchangeFileWriter(tmp_path / "x")
    for number in range(50):
        writer.add(number % 3, batch(n=[number], t=[f"row {number}"]))
    writer.add(1, batch(n=["another type"]))
    writer.close()
    assert [row["n"] for row in rows_of(tmp_path / "x", 0)] == list(range(0, 50, 3))
    assert rows_of(tmp_path / "x", 1)[-1] == {"n": "another type"}
    assert rows_of(tmp_path / "x", 7) == []
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_nothing_half_written_is_seen(tmp_path):
    writer = ExchangeFileWriter(tmp_path / "x")
    writer.add(0, batch(n=[1]))
    assert not (tmp_path / "x").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "x"
    writer = ExchangeFileWriter(path)
    writer.add(0, batch(n=list(range(100))))
    writer.close()
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "empty": b"", "other": b"z" * 200}[damage])
    with pytest.raises((CorruptFileError, OSError, pa.ArrowInvalid)):
        rows_of(path, 0)
    path.unlink()
    with pytest.raises(PipelineError, match="is gone"):
        rows_of(path, 0)


@pytest.mark.parametrize(
    ("route", "sections"),
    [(Route("hash", ("k",)), 3), (Route("round_robin"), 3), (Route("single"), 1)],
)
def test_routes_lose_no_row(tmp_path, route, sections):
    writer = ExchangeWriter(route, sections, str(tmp_path))
    whole = pa.RecordBatch.from_pylist(ROWS)
    receipt = writer.write("aa", 0, iter([whole.slice(0, 150), whole.slice(150)]))
    found = [rows_of(receipt.location, section) for section in range(sections)]
    assert receipt.rows == len(ROWS)
    assert sorted((row for part in found for row in part), key=lambda r: r["n"]) == ROWS
    if route.kind == "hash":
        keys = [{row["k"] for row in part} for part in found]
        assert sum(map(len, keys)) == 5  # each key in one section only
        assert all([r["n"] for r in part] == sorted(r["n"] for r in part) for part in found)
    if route.kind == "round_robin":
        assert max(map(len, found)) - min(map(len, found)) <= 1
    assert writer.holds(receipt)
    writer.remove(["aa"])
    assert not writer.holds(receipt)


def counted(row):
    CALLS.append(row["n"])
    return {"m": row["n"]}


def poisoned(row):
    if FAIL:
        raise ValueError("no")
    return {}


def keyed():
    return (
        Pipeline("sums")
        .source(ROWS)
        .map(counted, reads=("n",), adds=("m",))
        .aggregate(by="k", total=("m", "sum"))
        .map(poisoned, adds=())
        .sink()
    )


def test_an_interrupted_run_reads_what_was_staged(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_HOME", str(tmp_path))
    store = FileRunStore(tmp_path / "log")
    FAIL.append(True)
    CALLS.clear()
    with pytest.raises(OperatorError, match=r"'poisoned' failed.*no.*Declared at .*test_exchange"):
        keyed().run(store=store)
    assert len(CALLS) == len(ROWS)
    FAIL.clear()
    report = keyed().run(store=store)
    assert len(CALLS) == len(ROWS)  # the chain before the exchange did not run again
    assert sum(report.committed.data.column("total").to_pylist()) == sum(r["n"] for r in ROWS)
    assert report.reused_partitions > 0
    assert report.rows_read == len(ROWS)
    # Nothing is left behind by a run that has ended.
    assert list(tmp_path.rglob("*.exchange")) == []
    assert not [p for p in (tmp_path / "log").rglob("*") if p.is_file() and "partition" in str(p)]


def test_rows_lost_in_an_exchange_are_noticed(tmp_path):
    plan = keyed().plan(exchange_dir=str(tmp_path))
    run = Run(plan, CommitLog(MemoryStore()), "never")
    chains = run.chains()
    first = next(chains)
    for partition in first.todo:
        first.record(run_stage(first.plan.stages[0], partition, first.plan.context, worker="test"))
    first.end()
    second = next(chains)
    for partition in second.todo[:-1]:  # one is forgotten
        second.record(run_stage(second.plan.stages[0], partition, second.plan.context))
    with pytest.raises(AccountingError, match=r"20 went into the exchange, \d+ came out"):
        second.end()


def test_the_same_chain_twice_is_planned_once():
    base = Pipeline("p").source(ROWS).map(counted, reads=("n",), adds=("m",))
    plan = base.join(base, on="k").sink().plan()
    assert len(plan.chains) == 2
    plan = base.join(base.filter(lambda row: True), on="k").sink().plan()
    assert len(plan.chains) == 3


def test_explain_says_why_a_stage_begins():
    shown = keyed().explain(partitions=3)
    assert "2 stage(s) in 2 chains, stages x partitions: 1 x 3 + 1 x 3 = 6 task(s)" in shown
    assert "exchange: hash of k, into 3 section(s)" in shown
    assert "begins here: rows change partitions" in shown
    assert "test_exchange.py:" in shown
    drawn = keyed().explain(style="mermaid")
    assert drawn.count("subgraph") == 2
    assert "n3 --> n4" in drawn  # over the exchange
