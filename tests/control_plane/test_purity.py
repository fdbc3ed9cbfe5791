"""The control plane has no clock, no I/O and no threads: it imports nothing that has."""

from __future__ import annotations

import ast
from pathlib import Path

import sage_prefect.control_plane as package

ALLOWED = {
    "__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "hashlib",
    "heapq", "itertools", "json", "math", "random", "sage_prefect", "typing", "typing_extensions",
}  # fmt: skip


def test_imports() -> None:
    folder = Path(package.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in ALLOWED, f"{file.name} imports {name}"
                if name == "random":
                    # The class, of which an instance is passed in; never the shared functions.
                    assert isinstance(node, ast.ImportFrom)
                    assert [alias.name for alias in node.names] == ["Random"]
                if name == "sage_prefect.common.compiled":
                    # Chooses where the modules come from; none of them knows of it.
                    assert file.name == "__init__.py"
                elif name.startswith("sage_prefect"):
                    assert name.startswith(
                        ("sage_prefect.control_plane", "sage_prefect.common.errors")
                    ), f"{file.name} imports {name}"
