from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import EmptySourceError, UnknownNameError
from sage_prefect.middleware import Chunk, PythonDocs, python_docs


def documents(*modules: str) -> dict[str, dict[str, Any]]:
    source = PythonDocs(modules)
    return {
        row["source"]: row
        for part in source.parts()
        for batch in source.read(part)
        for row in batch.to_pylist()
    }


def test_at_least_five_thousand_chunks_each_once() -> None:
    report = Pipeline("docs").source(PythonDocs()).map(Chunk()).sink().run()
    chunks = report.committed.data
    assert 5000 <= chunks.num_rows <= 12_000
    identities = chunks.column("chunk_id").to_pylist()
    assert len(set(identities)) == len(identities)
    kinds = set(chunks.column("kind").to_pylist())
    assert kinds == {"module", "class", "function", "method", "topic"}


def test_a_function() -> None:
    row = documents("shlex")["shlex.split"]
    assert row["kind"] == "function"
    assert row["module"] == "shlex"
    assert row["title"].startswith("shlex.split(s, comments=False, posix=True")
    assert row["text"].startswith(row["title"] + "\n")
    assert "shell-like syntax" in row["text"]


def test_names_are_those_that_users_import() -> None:
    found = documents("asyncio", "os.path", "os", "io", "collections", "sqlite3", "unittest")
    for name in (
        "asyncio.gather",
        "os.path.join",
        "os.stat",
        "os.makedirs",
        "io.StringIO",
        "collections.deque",
        "collections.abc.Mapping",
        "unittest.TestCase",
    ):
        assert name in found
    assert "asyncio.tasks.gather" not in found
    found = documents("hmac", "random", "json")
    assert found["hmac.compare_digest"]["title"] == "hmac.compare_digest(a, b, /)"
    assert found["random.shuffle"]["kind"] == "function"
    assert not any(name.startswith("json.encoder.") for name in found)


def test_long_signatures_are_cut() -> None:
    title = documents("json")["json.dumps"]["title"]
    assert title.startswith("json.dumps(obj, *, ")
    assert title.endswith(", ...)")
    assert len(title) <= 70


def test_modules_can_be_left_out() -> None:
    labels = {part.spec[0] for part in PythonDocs(exclude=["help", "tkinter"]).parts()}
    assert "json" in labels
    assert not labels & {"help", "tkinter"}
    with pytest.raises(UnknownNameError, match="'nope'"):
        PythonDocs(exclude=["nope"]).parts()


def test_builtins_and_compiled_modules() -> None:
    found = documents("builtins", "math", "itertools", "time")
    assert found["str.split"]["title"] == "str.split(sep=None, maxsplit=-1)"
    assert {"open", "math.sqrt", "itertools.chain", "time.sleep"} <= set(found)


def test_the_language_reference() -> None:
    row = documents("help")["help('with')"]
    assert row["kind"] == "topic"
    assert "context manager" in row["text"]


def test_no_private_noise_and_nothing_short() -> None:
    found = documents("json", "concurrent", "email", "importlib")
    for name, row in found.items():
        assert not any(part.startswith("_") for part in name.split("."))
        assert len(row["text"]) > len(row["title"]) + python_docs.MIN_CHARACTERS


def test_nothing_is_imported_but_what_is_free_of_side_effects() -> None:
    sys.modules.pop("turtle", None)
    assert documents("turtle")
    assert "turtle" not in sys.modules


def test_the_same_rows_each_time() -> None:
    source = PythonDocs(["json"])
    part = source.parts()[0]
    first = [batch.to_pylist() for batch in source.read(part)]
    assert [batch.to_pylist() for batch in PythonDocs(["json"]).read(part)] == first
    assert PythonDocs(["json"]).parts() == source.parts()


def test_large_packages_are_cut_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = documents("email")
    monkeypatch.setattr(python_docs, "PART_BYTES", 50_000)
    assert len(PythonDocs(["email"]).parts()) > 3
    assert documents("email") == whole


def test_unknown_module() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'json'"):
        PythonDocs(["jsn"]).parts()


def test_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "_modules", dict)
    monkeypatch.setattr(python_docs, "stdlib_dir", lambda: tmp_path)
    with pytest.raises(EmptySourceError, match="without its library sources"):
        PythonDocs().parts()
