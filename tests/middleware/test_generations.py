from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sage_prefect.middleware.generations import Generations


def write(text: str):  # type: ignore[no-untyped-def]
    def build(folder: Path) -> None:
        (folder / "data").write_text(text)

    return build


def text_of(generations: Generations) -> str | None:
    return generations.read(lambda folder: (folder / "data").read_text())


def test_nothing_yet(tmp_path: Path) -> None:
    generations = Generations(tmp_path / "none")
    assert generations.current() is None
    assert text_of(generations) is None


def test_publishes_and_keeps_some(tmp_path: Path) -> None:
    generations = Generations(tmp_path, keep=2)
    for number in range(1, 5):
        with generations.locked():
            generations.publish(write(str(number)))
        assert text_of(generations) == str(number)
    assert sorted(f.name for f in tmp_path.glob("gen-*")) == ["gen-000003", "gen-000004"]


def test_a_build_that_fails_changes_nothing(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    with generations.locked():
        generations.publish(write("one"))

    def broken(folder: Path) -> None:
        (folder / "data").write_text("half")
        raise RuntimeError("full disk")

    with generations.locked(), pytest.raises(RuntimeError, match="full disk"):
        generations.publish(broken)
    assert text_of(generations) == "one"
    assert not list(tmp_path.glob(".building-*"))


def test_what_a_killed_commit_left_is_cleared(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    (tmp_path / ".building-dead").mkdir()
    # Renamed but not yet current: its number is not given out again.
    (tmp_path / "gen-000007").mkdir()
    with generations.locked():
        folder = generations.publish(write("new"))
    assert folder.name == "gen-000008"
    assert not list(tmp_path.glob(".building-*"))


def test_a_reader_that_meets_a_removed_generation_reads_the_next(tmp_path: Path) -> None:
    generations = Generations(tmp_path, keep=1)
    with generations.locked():
        generations.publish(write("one"))
    seen: list[str] = []

    def slow(folder: Path) -> str:
        seen.append(folder.name)
        if len(seen) == 1:
            with generations.locked():
                generations.publish(write("two"))
        return (folder / "data").read_text()

    assert generations.read(slow) == "two"
    assert seen == ["gen-000001", "gen-000002"]


def test_a_missing_file_is_not_hidden(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    with generations.locked():
        generations.publish(write("one"))
    with pytest.raises(FileNotFoundError):
        generations.read(lambda folder: (folder / "other").read_text())


def test_one_commit_at_a_time(tmp_path: Path) -> None:
    generations = Generations(tmp_path, keep=100)
    inside = threading.Lock()
    failures: list[str] = []

    def commit(number: int) -> None:
        with generations.locked():
            if not inside.acquire(blocking=False):
                failures.append("two at once")
                return
            generations.publish(write(str(number)))
            inside.release()

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list(tmp_path.glob("gen-*"))) == 8
