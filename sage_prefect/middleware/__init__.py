"""Operators and stores that pipelines are built from.

The names below load on first use (PEP 562), so that importing one operator does not import the
dependencies of all. To add a name: one line in ``_EXPORTS`` and one in the type-checking block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "VectorIndex": "sage_prefect.middleware.vector_index",
}

if TYPE_CHECKING:
    from sage_prefect.middleware.vector_index import VectorIndex as VectorIndex


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_EXPORTS)
