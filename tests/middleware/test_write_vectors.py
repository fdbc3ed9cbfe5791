from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import (
    CorruptFileError,
    GraphError,
    OperatorError,
    VectorIndexError,
)
from sage_prefect.kernel.commit_log import MemoryStore
from sage_prefect.middleware import Retrieve, WriteVectors, open_collection
from sage_prefect.middleware.collection import collection_names, collections_dir
from sage_prefect.middleware.columns import vector_array

DIM = 8


def batches(start: int, count: int, dim: int = DIM) -> Iterator[pa.RecordBatch]:
    """Rows ``start`` and on, each with a vector of its own."""
    rng = np.random.default_rng(start)
    names = [f"doc{n}" for n in range(start, start + count)]
    made = pa.RecordBatch.from_pydict(
        {
            "source": names,
            "text": [f"text of {name}" for name in names],
            "chunk_id": [f"{name}#0" for name in names],
            "embedding": vector_array(rng.standard_normal((count, dim)).astype(np.float32)),
        }
    )
    half = count // 2
    return iter([made.slice(0, half), made.slice(half)])


def publish(name: str = "docs", parts: int = 3, rows: int = 10, **options: Any) -> Any:
    sink = WriteVectors(name, **options)
    receipts = [sink.write(f"k{n}", n, batches(n * rows, rows)) for n in range(parts)]
    return sink.commit(receipts)


def vectors_of(start: int, count: int) -> np.ndarray:
    return np.random.default_rng(start).standard_normal((count, DIM)).astype(np.float32)


def test_each_row_is_found_by_its_vector_with_its_columns() -> None:
    committed = publish()
    assert committed.rows == 30
    collection = open_collection("docs")
    assert len(collection) == 30
    ids, scores = collection.search(vectors_of(10, 10), 2)
    assert ids[:, 0].tolist() == list(range(10, 20))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-4)
    rows = collection.rows(ids[:, 0].tolist(), ["source", "text"])
    assert rows[3] == {"source": "doc13", "text": "text of doc13"}
    assert collection_names() == ["docs"]


def test_rows_may_come_as_plain_lists() -> None:
    rows = [{"chunk_id": str(n), "embedding": [float(n == i) for i in range(4)]} for n in range(4)]
    report = Pipeline("p").source(rows).sink(WriteVectors("lists")).run(partitions=2)
    assert report.committed.detail["dim"] == 4
    ids, _ = open_collection("lists").search(np.eye(4, dtype=np.float32), 1)
    assert ids[:, 0].tolist() == [0, 1, 2, 3]


def test_a_run_replaces_and_readers_keep_what_they_opened() -> None:
    publish(parts=3)
    before = open_collection("docs")
    sink = WriteVectors("docs")
    receipt = sink.write("other", 0, batches(100, 5))
    assert len(open_collection("docs")) == 30  # staged is not published
    sink.commit([receipt])
    assert len(open_collection("docs")) == 5
    for number in range(3):  # the first generation's files are gone by now
        sink.commit([sink.write(f"more{number}", 0, batches(200 + number, 2))])
    assert len(list((collections_dir() / "docs").glob("gen-*"))) == 2
    ids, _ = before.search(vectors_of(0, 10), 1)
    assert before.rows([int(ids[4, 0])], ["source"]) == [{"source": "doc4"}]


def test_killed_between_write_and_commit() -> None:
    old = publish()
    sink = WriteVectors("docs")
    receipts = [sink.write(f"n{n}", n, batches(n * 10, 10)) for n in range(2)]
    again = WriteVectors("docs")
    assert again.current(old)
    assert all(again.holds(receipt) for receipt in receipts)
    assert again.commit(receipts).rows == 20
    assert not again.current(old)


def test_killed_while_the_commit_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    old = publish()
    sink = WriteVectors("docs")
    receipts = [sink.write("n", 0, batches(0, 4))]

    def broken(self: Any, *args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WriteVectors, "_refuse_duplicates", broken)
        with pytest.raises(KeyboardInterrupt):
            sink.commit(receipts)
    assert WriteVectors("docs").current(old)
    assert len(open_collection("docs")) == 30
    assert sink.commit(receipts).rows == 4


def test_commit_is_idempotent() -> None:
    sink = WriteVectors("docs")
    receipts = [sink.write(f"k{n}", n, batches(n * 10, 10)) for n in range(2)]
    first = sink.commit(receipts)
    # The run died before it noted the commit: the partitions are published, nothing is lost.
    assert all(WriteVectors("docs").holds(receipt) for receipt in receipts)
    assert WriteVectors("docs").commit(receipts) == first
    assert not list((collections_dir() / "docs" / ".staging").iterdir())


def test_vectors_staged_again_replace_those_of_the_same_partition() -> None:
    sink = WriteVectors("docs")
    receipts = [sink.write(f"k{n}", n, batches(n * 10, 10)) for n in range(2)]
    old = sink.commit(receipts)
    again = [sink.write("k0", 0, batches(70, 10)), receipts[1]]
    assert sink.commit(again).detail["commit"] != old.detail["commit"]
    names = [row["source"] for row in open_collection("docs").rows(range(20), ["source"])]
    assert names == [f"doc{n}" for n in (*range(70, 80), *range(10, 20))]


def test_published_partitions_are_taken_over_into_the_next_generation() -> None:
    sink = WriteVectors("docs")
    kept = sink.write("kept", 0, batches(0, 10))
    sink.commit([sink.write("gone", 1, batches(50, 4)), kept])
    new = sink.write("new", 1, batches(20, 6))
    assert sink.commit([kept, new]).rows == 16
    collection = open_collection("docs")
    names = [row["source"] for row in collection.rows(range(16), ["source"])]
    assert names == [f"doc{n}" for n in (*range(10), *range(20, 26))]


def test_a_document_that_came_in_twice_is_refused() -> None:
    sink = WriteVectors("docs")
    receipts = [sink.write("a", 0, batches(0, 4)), sink.write("b", 1, batches(2, 4))]
    with pytest.raises(VectorIndexError, match=r"2 value\(s\) of 'chunk_id'.*'doc2#0'"):
        sink.commit(receipts)
    with pytest.raises(VectorIndexError, match="there is no index 'docs'"):
        open_collection("docs")
    unchecked = WriteVectors("docs", id_column=None)
    assert unchecked.commit(receipts).rows == 8


def test_a_partition_that_came_in_twice_is_refused() -> None:
    sink = WriteVectors("docs")
    receipt = sink.write("a", 0, batches(0, 4))
    with pytest.raises(VectorIndexError, match="handed over twice"):
        sink.commit([receipt, receipt])


def test_vectors_of_two_models_are_refused() -> None:
    sink = WriteVectors("docs")
    receipts = [sink.write("a", 0, batches(0, 4)), sink.write("b", 1, batches(4, 4, dim=3))]
    with pytest.raises(VectorIndexError, match=r"vectors of \[3, 8\] dimensions"):
        sink.commit(receipts)


def test_nothing_to_index() -> None:
    sink = WriteVectors("docs")
    with pytest.raises(VectorIndexError, match="no rows reached collection 'docs'"):
        sink.commit([sink.write("a", 0, iter([]))])


def test_a_staged_file_that_is_gone() -> None:
    sink = WriteVectors("docs")
    receipt = sink.write("a", 0, batches(0, 4))
    Path(receipt.location).unlink()
    assert not sink.holds(receipt)
    with pytest.raises(VectorIndexError, match="is gone"):
        sink.commit([receipt])


def test_rows_without_vectors() -> None:
    rows = [{"chunk_id": "a", "embedding": "text"}]
    with pytest.raises(OperatorError, match="holds string, not vectors"):
        Pipeline("p").source(rows).sink(WriteVectors("docs")).run()
    with pytest.raises(OperatorError, match="1 null vector"):
        Pipeline("p").source([{"chunk_id": "a", "embedding": [1.0]}, {"chunk_id": "b"}]).sink(
            WriteVectors("docs")
        ).run()


def test_a_repeated_run_is_skipped() -> None:
    store = MemoryStore()
    rows = [{"chunk_id": str(n), "embedding": [float(n), 1.0]} for n in range(4)]
    pipeline = Pipeline("p").source(rows).sink(WriteVectors("docs"))
    first = pipeline.run(store=store, reuse="always")
    second = pipeline.run(store=store, reuse="always")
    assert second.reused_partitions == second.partitions
    assert second.committed.detail == first.committed.detail
    publish("docs")
    third = pipeline.run(store=store, reuse="always")
    assert third.committed.detail["commit"] != first.committed.detail["commit"]


def test_other_metrics_and_storage() -> None:
    publish("l2", metric="l2", storage="float32")
    _, scores = open_collection("l2").search(vectors_of(0, 10), 2)
    assert (scores[:, 0] < 1e-3).all()
    assert (scores[:, 1] > scores[:, 0]).all()


def test_damage_is_named() -> None:
    folder = Path(publish().location)
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(orjson.dumps({**manifest, "format": 99}))
    with pytest.raises(CorruptFileError, match="format 99; this version reads 1"):
        open_collection("docs")
    (folder / "manifest.json").write_bytes(b"{")
    with pytest.raises(CorruptFileError, match=r"manifest\.json is damaged"):
        open_collection("docs")
    (folder / "manifest.json").write_bytes(orjson.dumps({**manifest, "rows": 31}))
    with pytest.raises(CorruptFileError, match="its manifest says 31"):
        open_collection("docs")


def test_what_cannot_be_built_is_refused_when_the_pipeline_is_built() -> None:
    with pytest.raises(GraphError, match=r"WriteVectors\('x'\): metric is 'dot'"):
        WriteVectors("x", metric="dot")  # type: ignore[arg-type]


def test_names() -> None:
    with pytest.raises(GraphError, match="cannot be a folder's name"):
        WriteVectors("a/b")
    with pytest.raises(GraphError, match="cannot be a folder's name"):
        Retrieve("../x")


def test_two_commits_at_once_are_one_after_the_other() -> None:
    sinks = [WriteVectors("docs"), WriteVectors("docs")]
    receipts = [sink.write(f"s{n}", 0, batches(n * 10, 5 + n)) for n, sink in enumerate(sinks)]
    done: list[int] = []

    def commit(number: int) -> None:
        done.append(sinks[number].commit([receipts[number]]).rows)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [5, 6]
    assert len(open_collection("docs")) in (5, 6)


_COMMITS_FOR_EVER = """
import itertools, sys
import numpy as np, pyarrow as pa
from sage_prefect.middleware import WriteVectors
from sage_prefect.middleware.columns import vector_array

sink = WriteVectors("docs", id_column=None)
for number in itertools.count():
    vectors = np.full((50, 8), number + 1, dtype=np.float32)
    batch = pa.RecordBatch.from_pydict({"n": [number] * 50, "embedding": vector_array(vectors)})
    sink.commit([sink.write(f"k{number}", 0, iter([batch]))])
    print(number, flush=True)
"""


def test_killed_at_any_moment_the_collection_is_whole() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMITS_FOR_EVER], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        try:
            published = [int(lines.readline()) for _ in range(20)]
        finally:
            process.kill()  # somewhere in the next commit
            process.wait()
    collection = open_collection("docs")
    numbers = {row["n"] for row in collection.rows(range(50), ["n"])}
    assert len(numbers) == 1
    assert numbers.pop() >= published[-1]
    # What the dead process left is in nobody's way.
    assert publish().rows == 30
    assert not list((collections_dir() / "docs").glob(".building-*"))
