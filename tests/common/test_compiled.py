"""Where a package's modules come from: a build of exactly these sources, else the sources."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_prefect.common.compiled import compiled_state, prefer_compiled, sources_digest
from sage_prefect.common.errors import SettingsError

INIT = "from sage_prefect.common.compiled import prefer_compiled\n"
CALL = 'STATE = prefer_compiled(__name__, "twin_of_plain")\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "plain"
    package.mkdir()
    (package / "__init__.py").write_text(INIT + CALL)
    (package / "one.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in ("plain", "plain.one", "twin_of_plain"):
        sys.modules.pop(name, None)


def build(folder: Path, digest: str) -> None:
    """A build stands in as a module: it only has to say what it was made from."""
    content = f"DIGEST = {digest!r}\nMODULES = ['plain.one']\n"
    (folder / "twin_of_plain.py").write_text(content)


def test_without_a_build_the_sources_run(folder: Path) -> None:
    state = compiled_state("plain")
    assert (state.active, state.reason) == (False, "not built")
    assert importlib.import_module("plain.one").X == 1


def test_a_build_of_these_sources_is_taken(folder: Path) -> None:
    build(folder, sources_digest(folder / "plain"))
    state = compiled_state("plain")
    assert state.active
    assert state.reason == str(folder / "twin_of_plain.py")
    # The module would come from the extension, which this file is not.
    with pytest.raises(ImportError, match=r"twin_of_plain\.py"):
        importlib.import_module("plain.one")


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
def test_an_older_build_is_not(folder: Path, change: str) -> None:
    build(folder, sources_digest(folder / "plain"))
    one = folder / "plain" / "one.py"
    if change == "edit":
        one.write_text("X = 2\n")
    elif change == "add":
        (folder / "plain" / "two.py").write_text("")
    elif change == "remove":
        one.unlink()
    else:
        one.rename(one.with_name("other.py"))
    state = compiled_state("plain")
    assert not state.active
    assert "the sources changed since" in state.reason
    if change == "edit":
        assert importlib.import_module("plain.one").X == 2


def test_a_build_that_does_not_load_says_why(folder: Path) -> None:
    (folder / "twin_of_plain.py").write_text("raise ImportError('undefined symbol: PyFoo')\n")
    state = compiled_state("plain")
    assert not state.active
    assert state.reason == "the build does not load: undefined symbol: PyFoo"


def test_it_can_be_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder, sources_digest(folder / "plain"))
    monkeypatch.setenv("SAGE_COMPILED", "0")
    assert compiled_state("plain").reason == "switched off by SAGE_COMPILED=0"
    assert importlib.import_module("plain.one").X == 1


def test_the_switch_is_0_or_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_COMPILED", "yes")
    with pytest.raises(SettingsError, match="SAGE_COMPILED is 'yes'"):
        prefer_compiled("plain", "twin_of_plain")
