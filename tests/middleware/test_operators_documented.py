"""docs/operators.md tells of every exported operator, its parameters and their defaults."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import sage_prefect.middleware as middleware
from sage_prefect.kernel.operator import Operator

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def section(name: str) -> str:
    found = re.search(
        rf"^### {re.escape(name)}\n(.*?)(?=^#{{2,3}} |\Z)",
        PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found, f"docs/operators.md has no section {name}"
    return found[1]


def parameters(target: Any) -> dict[str, str]:
    """Parameter names and defaults (as the page writes them)."""
    signature = inspect.signature(target)
    empty = inspect.Parameter.empty
    return {
        name: "" if parameter.default is empty else repr(parameter.default).replace("'", '"')
        for name, parameter in signature.parameters.items()
    }


@pytest.mark.parametrize("name", dir(middleware))
def test_parameters_and_defaults(name: str) -> None:
    text = section(name)
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^|]*)`)? ?\|", text, flags=re.MULTILINE)
    assert dict(rows) == parameters(getattr(middleware, name))


@pytest.mark.parametrize("name", dir(middleware))
def test_errors_are_told(name: str) -> None:
    assert "Errors:" in section(name)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in dir(middleware)
        if isinstance(getattr(middleware, name), type)
        and issubclass(getattr(middleware, name), Operator)
    ],
)
def test_each_operator_has_an_example(name: str) -> None:
    assert re.search(rf"```python\n{name}\(", section(name))


@pytest.mark.parametrize("name", dir(middleware))
def test_docstrings_tell_of_parameters(name: str) -> None:
    doc = inspect.getdoc(getattr(middleware, name)) or ""
    assert doc
    known = re.findall(r"`?\b(\w+)\b`?", doc)
    if name != "Collection":  # made by open_collection, not by users
        assert set(parameters(getattr(middleware, name))) - set(known) <= {"name"}


def test_each_exported_name_loads() -> None:
    for name in dir(middleware):
        assert getattr(middleware, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = middleware.Nope
