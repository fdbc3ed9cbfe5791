"""Operators and stores that pipelines are built from.

The names below load on first use (PEP 562), so that importing one operator does not import the
dependencies of all. To add a name: one line in ``_EXPORTS`` and one in the type-checking block.
"""

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
    "ReadHttp": "sage_prefect.middleware.read_http",
    "ReadSql": "sage_prefect.middleware.read_sql",
    "Retrieve": "sage_prefect.middleware.retrieve",
    "VectorIndex": "sage_prefect.middleware.vector_index",
    "WriteCsv": "sage_prefect.middleware.write_files",
    "WriteJsonl": "sage_prefect.middleware.write_files",
    "WriteParquet": "sage_prefect.middleware.write_files",
    "WriteSql": "sage_prefect.middleware.write_sql",
    "WriteVectors": "sage_prefect.middleware.write_vectors",
    "open_collection": "sage_prefect.middleware.collection",
}

if TYPE_CHECKING:
    from sage_prefect.middleware.chunk import Chunk as Chunk
    from sage_prefect.middleware.collection import Collection as Collection
    from sage_prefect.middleware.collection import open_collection as open_collection
    from sage_prefect.middleware.embed import Embed as Embed
    from sage_prefect.middleware.generate import Generate as Generate
    from sage_prefect.middleware.print_rows import Print as Print
    from sage_prefect.middleware.prompt import Prompt as Prompt
    from sage_prefect.middleware.python_docs import PythonDocs as PythonDocs
    from sage_prefect.middleware.read_files import ReadFiles as ReadFiles
    from sage_prefect.middleware.read_http import ReadHttp as ReadHttp
    from sage_prefect.middleware.read_sql import ReadSql as ReadSql
    from sage_prefect.middleware.retrieve import Retrieve as Retrieve
    from sage_prefect.middleware.vector_index import VectorIndex as VectorIndex
    from sage_prefect.middleware.write_files import WriteCsv as WriteCsv
    from sage_prefect.middleware.write_files import WriteJsonl as WriteJsonl
    from sage_prefect.middleware.write_files import WriteParquet as WriteParquet
    from sage_prefect.middleware.write_sql import WriteSql as WriteSql
    from sage_prefect.middleware.write_vectors import WriteVectors as WriteVectors


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_EXPORTS)
