"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "sage_prefect": ROOT / "sage_prefect",
    "sage_gateway": ROOT / "gateway" / "sage_gateway",
    "sage_bench": ROOT / "benchmarks" / "sage_bench",
    "sage_blocks": ROOT / "blocks" / "sage_blocks",
}
# An example that needs a server carries `# doctest: +SKIP` and is shown by an e2e test instead.
MODULES = sorted(
    ".".join((package, *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
    for package, folder in FOLDERS.items()
    for file in folder.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert len(MODULES) >= 3
