"""A published collection: a vector index and the rows that its ids stand for.

One generation holds ``manifest.json``, ``index.svx`` and, memory-mapped, ``rows.arrow``: the rows
of all partitions in order. Ids of the index are row numbers. The rows keep their vectors, so that
an index of another kind can be built from them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from sage_prefect.common.errors import CorruptFileError, VectorIndexError, near_name
from sage_prefect.common.paths import data_dir
from sage_prefect.middleware.generations import Generations
from sage_prefect.middleware.staging import batches_of, open_arrow

if TYPE_CHECKING:
    from sage_prefect.middleware.vector_index import VectorIndex

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.svx"
ROWS = "rows.arrow"


@dataclass(frozen=True)
class Manifest:
    """What a generation holds.

    Args:
        commit: unique per commit.
        parts: per partition: ``key``, ``rows``, ``first_batch`` and ``batches`` in ``rows.arrow``.
        vector_column: the column that is indexed.
        columns: the other columns.
    """

    name: str
    commit: str
    rows: int
    dim: int
    metric: str
    vector_column: str
    id_column: str | None
    columns: list[str]
    parts: list[dict[str, Any]]
    created: str
    index: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def part(self, key: str) -> dict[str, Any] | None:
        """The partition of this key, or None."""
        return next((part for part in self.parts if part["key"] == key), None)

    def to_json(self) -> bytes:
        """The manifest as it is stored."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)


def collections_dir() -> Path:
    """Where collections are published."""
    return data_dir() / "indexes"


def collection_names() -> list[str]:
    """Names of all published collections."""
    root = collections_dir()
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(folder.name for folder in folders if Generations(folder).current() is not None)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a generation.

    Raises:
        CorruptFileError: it is damaged, or of a format that this version does not know.
        FileNotFoundError: it is not there.
    """
    path = folder / MANIFEST
    try:
        content = orjson.loads(path.read_bytes())
        version = content.get("format") if isinstance(content, dict) else None
        if version == FORMAT:
            return Manifest(**content)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is damaged: {error}.", hint="Run the pipeline that writes it again."
        ) from error
    raise CorruptFileError(
        f"{path} has format {version!r}; this version reads {FORMAT}.",
        hint="Run the pipeline that writes it again.",
    )


def current_manifest(name: str) -> Manifest | None:
    """The manifest of collection ``name`` as it is now, or None."""
    return Generations(collections_dir() / name).read(read_manifest)


class Collection:
    """One generation of a collection, open for search. Made by :func:`open_collection`."""

    def __init__(self, folder: Path, manifest: Manifest, index: VectorIndex) -> None:
        self.folder = folder
        self.manifest = manifest
        self.index = index
        self._batches = list(batches_of(open_arrow(folder / ROWS)))
        self._starts: list[int] = []
        rows = 0
        for batch in self._batches:
            self._starts.append(rows)
            rows += batch.num_rows
        if rows != manifest.rows:
            raise CorruptFileError(
                f"{folder} holds {rows} row(s); its manifest says {manifest.rows}.",
                hint="Run the pipeline that writes it again.",
            )

    def __len__(self) -> int:
        return self.manifest.rows

    def search(
        self, queries: npt.NDArray[np.float32], k: int, effort: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The ``k`` nearest rows per query.

        Args:
            queries: float32 ``[m, dim]``.

        Returns:
            Row numbers int64 ``[m, k]`` (-1 and NaN where there are fewer rows) and scores float32
            ``[m, k]``: similarities for cosine and ip, squared distances for l2.

        Raises:
            VectorIndexError: the queries have another dimension than the index.
        """
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise VectorIndexError(
                f"queries of shape {queries.shape} do not fit collection "
                f"{self.manifest.name!r} of dimension {self.manifest.dim}.",
                hint="Embed the questions with the model that embedded the collection.",
            )
        found = self.index.search(queries, k, effort=effort)
        return found[0], found[1]

    def rows(self, ids: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows with these numbers, as dicts of ``columns``, in the order asked for.

        Raises:
            VectorIndexError: a column that the collection does not have, or a number out of range.
        """
        known = [*self.manifest.columns, self.manifest.vector_column]
        for name in columns:
            if name not in known:
                raise VectorIndexError(
                    f"collection {self.manifest.name!r} has no column {name!r}.",
                    hint=f"{near_name(name, known)}It has: {', '.join(known)}.",
                )
        found = []
        for number in ids:
            if not 0 <= number < self.manifest.rows:
                raise VectorIndexError(
                    f"row {number} is not in collection {self.manifest.name!r} of "
                    f"{self.manifest.rows} row(s)."
                )
            at = bisect_right(self._starts, number) - 1
            batch, offset = self._batches[at], number - self._starts[at]
            found.append({name: batch.column(name)[offset].as_py() for name in columns})
        return found


def open_collection(name: str) -> Collection:
    """Open collection ``name`` as it is now; later commits do not change what was opened.

    Raises:
        VectorIndexError: there is none of that name; lists those there are.
        CorruptFileError: its files are damaged.
    """
    from sage_prefect.middleware.vector_index import VectorIndex

    def opened(folder: Path) -> Collection:
        manifest = read_manifest(folder)
        if not (folder / INDEX).is_file():  # removed by a commit just now: read the next one
            raise FileNotFoundError(folder / INDEX)
        index = VectorIndex.open(folder / INDEX, mmap=True, read_only=True)
        return Collection(folder, manifest, index)

    found = Generations(collections_dir() / name).read(opened)
    if found is None:
        known = collection_names()
        raise VectorIndexError(
            f"there is no index {name!r} under {collections_dir()}.",
            hint=f"{near_name(name, known)}There is: {', '.join(known) or 'none'}. Run the "
            f"pipeline that ends in WriteVectors({name!r}) first.",
        )
    return found
