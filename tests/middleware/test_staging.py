from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sage_prefect.common.errors import CorruptFileError, GraphError
from sage_prefect.middleware import staging


def batch(**columns: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def read(file: Path) -> list[dict[str, object]]:
    reader = staging.open_arrow(file)
    return [row for found in staging.batches_of(reader) for row in found.to_pylist()]


def test_writes_whole_partitions(tmp_path: Path) -> None:
    file, rows = staging.stage(tmp_path / "s", "key", iter([batch(a=[1, 2]), batch(a=[3])]))
    assert (file.name, rows) == ("key.arrow", 3)
    assert read(file) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [entry.name for entry in file.parent.iterdir()] == ["key.arrow"]


def test_writing_again_replaces(tmp_path: Path) -> None:
    staging.stage(tmp_path, "key", iter([batch(a=[1])]))
    file, _ = staging.stage(tmp_path, "key", iter([batch(a=[2])]))
    assert read(file) == [{"a": 2}]


def test_an_error_upstream_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield batch(a=[1])
        raise RuntimeError("upstream")

    with pytest.raises(RuntimeError, match="upstream"):
        staging.stage(tmp_path, "key", broken())
    assert list(tmp_path.iterdir()) == []


def test_no_rows_no_file(tmp_path: Path) -> None:
    staging.stage(tmp_path, "key", iter([batch(a=[1])]))
    file, rows = staging.stage(tmp_path, "key", iter([batch(a=[1]).slice(0, 0)]))
    assert rows == 0
    assert not file.exists()


def test_types_that_widen_are_brought_together(tmp_path: Path) -> None:
    batches = [
        batch(a=[None]),
        batch(a=["x"]),
        batch(a=["y"], b=[1]),
        batch(b=[2.5]),
        batch(a=[None]),
    ]
    file, rows = staging.stage(tmp_path, "key", iter(batches))
    assert rows == 5
    assert read(file) == [
        {"a": None, "b": None},
        {"a": "x", "b": None},
        {"a": "y", "b": 1.0},
        {"a": None, "b": 2.5},
        {"a": None, "b": None},
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.arrow"]


def test_types_that_have_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="columns of different types"):
        staging.stage(tmp_path, "key", iter([batch(a=["x"]), batch(a=[[1]])]))


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(b"ARROW1 nothing")
    with pytest.raises(CorruptFileError, match=r"x\.arrow is damaged"):
        staging.open_arrow(tmp_path / "x.arrow")
    with pytest.raises(FileNotFoundError):
        staging.open_arrow(tmp_path / "gone.arrow")


def test_discard_takes_what_is_published_and_what_is_stale(tmp_path: Path) -> None:
    for name in ("done", "fresh", "stale"):
        (tmp_path / name).touch()
    old = time.time() - staging.STALE_AFTER_S - 60
    os.utime(tmp_path / "stale", (old, old))
    staging.discard(tmp_path, [tmp_path / "done", tmp_path / "gone"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["fresh"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "x" * 101])
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(GraphError, match="cannot be a folder's name"):
        staging.check_name("collection", name)
