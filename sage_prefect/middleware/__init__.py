"""L4: operators. Names load on first use (PEP 562): importing this package imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Chunk": "sage_prefect.middleware.chunk",
    "Collection": "sage_prefect.middleware.collection",
    "Embed": "sage_prefect.middleware.embed",
    "Generate": "sage_prefect.middleware.generate",
    "Print": "sage_prefect.middleware.print_rows",
    "Prompt": "sage_prefect.middleware.prompt",
    "PythonDocs": "sage_prefect.middleware.python_docs",
    "ReadFiles": "sage_prefect.middleware.read_files",
    "Retrieve": "sage_prefect.middleware.retrieve",
    "VectorIndex": "sage_prefect.middleware.vector_index",
    "WriteJsonl": "sage_prefect.middleware.write_files",
    "WriteParquet": "sage_prefect.middleware.write_files",
    "WriteVectors": "sage_prefect.middleware.write_vectors",
    "open_collection": "sage_prefect.middleware.collection",
}

__all__ = [
    "Chunk",
    "Collection",
    "Embed",
    "Generate",
    "Print",
    "Prompt",
    "PythonDocs",
    "ReadFiles",
    "Retrieve",
    "VectorIndex",
    "WriteJsonl",
    "WriteParquet",
    "WriteVectors",
    "open_collection",
]

if TYPE_CHECKING:
    from sage_prefect.middleware.chunk import Chunk
    from sage_prefect.middleware.collection import Collection, open_collection
    from sage_prefect.middleware.embed import Embed
    from sage_prefect.middleware.generate import Generate
    from sage_prefect.middleware.print_rows import Print
    from sage_prefect.middleware.prompt import Prompt
    from sage_prefect.middleware.python_docs import PythonDocs
    from sage_prefect.middleware.read_files import ReadFiles
    from sage_prefect.middleware.retrieve import Retrieve
    from sage_prefect.middleware.vector_index import VectorIndex
    from sage_prefect.middleware.write_files import WriteJsonl, WriteParquet
    from sage_prefect.middleware.write_vectors import WriteVectors


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
