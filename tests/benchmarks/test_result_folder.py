"""Result folders: where they are, lines that never mix, and no private paths in them."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from sage_bench.result_folder import ResultFolder, portable, results_root
from sage_prefect.common.errors import BenchmarkError, CorruptFileError


def test_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SAGE_RESULTS_DIR", raising=False)
    assert results_root() == Path("results")
    monkeypatch.setenv("SAGE_RESULTS_DIR", str(tmp_path))
    assert results_root() == tmp_path
    assert results_root(Path("x")) == Path("x")


def test_create_and_open(tmp_path: Path) -> None:
    folder = ResultFolder.create("imports", tmp_path)
    assert folder.path.parent == tmp_path / "imports"
    with pytest.raises(BenchmarkError, match="not a result folder"):
        ResultFolder.open(folder.path)
    (folder.path / "manifest.json").write_text("{}")
    assert ResultFolder.open(folder.path).uid == folder.uid
    with pytest.raises(BenchmarkError, match=f"Result folders below it: .*{folder.uid}"):
        ResultFolder.open(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="--out"):
        ResultFolder.create("imports", tmp_path / "file")


def test_lines_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    folder = ResultFolder.create("e", tmp_path)

    def write(writer: int) -> None:
        for line in range(50):
            folder.append("raw", {"writer": writer, "line": line, "text": "x" * 2000})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = list(folder.read("raw"))
    assert len(lines) == 200
    for writer in range(4):
        assert [x["line"] for x in lines if x["writer"] == writer] == list(range(50))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = ResultFolder.create("e", tmp_path)
    with pytest.raises(CorruptFileError, match=r"raw\.jsonl is missing"):
        list(folder.read("raw"))
    (folder.path / "raw.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(CorruptFileError, match="line 2"):
        list(folder.read("raw"))
    (folder.path / "summary.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="holds a list"):
        folder.read_json("summary.json")


def test_private_paths_are_named_not_shown() -> None:
    assert portable(sys.prefix + "/bin/python") == "<venv>/bin/python"
    assert portable({"cwd": [Path(os.getcwd()) / "a.yaml"]}) == {"cwd": ["./a.yaml"]}
    assert portable(f"open {tempfile.gettempdir()}/x failed") == "open <tmp>/x failed"
    assert portable(3.5) == 3.5
    neighbour = f"{tempfile.gettempdir()}-other/x"
    assert portable(neighbour) == neighbour
