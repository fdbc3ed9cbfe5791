"""A run that is killed resumes; a run that is repeated skips."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import CorruptFileError, OperatorError
from sage_prefect.kernel.commit_log import MemoryStore
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.platform.run_store import FileRunStore

ROWS = [{"n": number} for number in range(256)]
CALLS: list[int] = []
FAIL_AT: set[int] = set()


def work(row):
    if row["n"] in FAIL_AT:
        raise ValueError(f"row {row['n']}")
    CALLS.append(row["n"])
    return {"square": row["n"] ** 2}


class Lines(Sink):
    """Stages one file per partition, publishes their concatenation."""

    name = "lines"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def write(self, partition, index, batches):
        values = [v for batch in batches for v in batch.column("square").to_pylist()]
        staged = self.folder / partition
        staged.write_text("\n".join(map(str, values)))
        return Receipt(partition, index, len(values), str(staged))

    def holds(self, receipt):
        return Path(receipt.location).is_file()

    def commit(self, receipts):
        out = self.folder / "out"
        texts = [Path(receipt.location).read_text() for receipt in receipts]
        out.write_text("\n".join(texts))
        for receipt in receipts:
            Path(receipt.location).unlink()
        return Committed(len(out.read_text().splitlines()), str(out))

    def current(self, committed):
        return Path(committed.location).is_file()


@pytest.fixture(autouse=True)
def fresh():
    CALLS.clear()
    FAIL_AT.clear()


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else FileRunStore(tmp_path / "runs")


def run(tmp_path, store, **options):
    pipeline = Pipeline("p").source(ROWS).map(work, adds=("square",)).sink(Lines(str(tmp_path)))
    return pipeline.run(partitions=4, store=store, **options)


def test_resume_repeats_only_what_is_not_finished(tmp_path, store):
    FAIL_AT.add(200)
    with pytest.raises(OperatorError, match="row 200"):
        run(tmp_path, store)
    assert not (tmp_path / "out").exists()
    done = set(CALLS)
    CALLS.clear()
    FAIL_AT.clear()
    report = run(tmp_path, store)
    assert report.reused_partitions == 3
    assert set(CALLS) == set(range(192, 256))
    assert done >= set(range(192))
    assert (tmp_path / "out").read_text().split() == [str(n * n) for n in range(256)]
    assert report.committed.rows == 256


def test_repeat_skips_what_is_published(tmp_path, store):
    run(tmp_path, store)
    CALLS.clear()
    report = run(tmp_path, store, reuse="always")
    assert CALLS == []
    assert report.reused_partitions == report.partitions == 4
    assert report.committed.rows == 256


def test_repeat_runs_again_when_the_output_is_gone(tmp_path, store):
    run(tmp_path, store)
    (tmp_path / "out").unlink()
    CALLS.clear()
    run(tmp_path, store, reuse="always")
    assert len(CALLS) == 256


def test_never_runs_all_anew(tmp_path, store):
    run(tmp_path, store)
    CALLS.clear()
    assert run(tmp_path, store, reuse="never").reused_partitions == 0
    assert len(CALLS) == 256


def test_a_staged_partition_that_vanished_is_made_again(tmp_path, store):
    FAIL_AT.add(200)
    with pytest.raises(OperatorError):
        run(tmp_path, store)
    FAIL_AT.clear()
    staged = [path for path in tmp_path.iterdir() if path.is_file()]
    staged[0].unlink()
    CALLS.clear()
    assert run(tmp_path, store).reused_partitions == 2
    assert len(CALLS) == 128


def test_file_store_refuses_foreign_keys(tmp_path):
    with pytest.raises(CorruptFileError):
        FileRunStore(tmp_path).get("partition", "../../etc/passwd")


def test_file_store_expires(tmp_path):
    store = FileRunStore(tmp_path)
    store.put("run", "ab" * 8, b"{}")
    assert store.expire(60) == 0
    assert store.expire(-60) == 1
    assert store.get("run", "ab" * 8) is None
