"""L4: operators. Names load on first use (PEP 562): importing this package imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Chunk": "sage_prefect.middleware.chunk",
    "Embed": "sage_prefect.middleware.embed",
    "PythonDocs": "sage_prefect.middleware.python_docs",
    "VectorIndex": "sage_prefect.middleware.vector_index",
    "WriteVectors": "sage_prefect.middleware.write_vectors",
    "open_collection": "sage_prefect.middleware.collection",
}

__all__ = [
    "Chunk",
    "Embed",
    "PythonDocs",
    "VectorIndex",
    "WriteVectors",
    "open_collection",
]

if TYPE_CHECKING:
    from sage_prefect.middleware.chunk import Chunk
    from sage_prefect.middleware.collection import open_collection
    from sage_prefect.middleware.embed import Embed
    from sage_prefect.middleware.python_docs import PythonDocs
    from sage_prefect.middleware.vector_index import VectorIndex
    from sage_prefect.middleware.write_vectors import WriteVectors


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
