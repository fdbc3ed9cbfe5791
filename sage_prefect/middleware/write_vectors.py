"""``WriteVectors``: rows with vectors to a searchable collection, published once."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import VectorIndexError
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.middleware.collection import (
    INDEX,
    MANIFEST,
    Manifest,
    collections_dir,
    read_manifest,
)
from sage_prefect.middleware.columns import vectors
from sage_prefect.middleware.generations import Generations
from sage_prefect.middleware.staging import batches_of, check_name, discard, open_arrow, stage

Metric = Literal["cosine", "ip", "l2"]
Kind = Literal["flat", "graph"]
Storage = Literal["int8", "bfloat16", "float32"]


class WriteVectors(Sink):
    """Publish rows as collection ``name``: a vector index, and all their columns beside it.

    Partitions are staged by workers and published together by one atomic step; until then readers
    see the collection as it was, and those that have it open keep it. A run replaces what the
    collection held. Publishing the same partitions again changes nothing. Lies in
    ``<data>/indexes/<name>``; the last two generations stay.

    Args:
        name: of the collection.
        column: the vectors.
        id_column: must be unique over the collection: a document that came in twice is refused.
            None: not checked.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: ``flat`` (exact) or ``graph``.
        storage: how the index holds vectors.

    Raises:
        GraphError: the name cannot be a folder's.
        VectorIndexError: no rows, vectors of different lengths, an id that is there twice.
    """

    name = "write-vectors"
    row_cost_s = 2e-5

    def __init__(
        self,
        name: str,
        column: str = "embedding",
        id_column: str | None = "chunk_id",
        metric: Metric = "cosine",
        kind: Kind = "flat",
        storage: Storage = "int8",
    ) -> None:
        self.collection = check_name("collection", name)
        self.column = column
        self.id_column = id_column
        self.metric = metric
        self.kind = kind
        self.storage = storage
        self.reads = (column, *((id_column,) if id_column else ()))

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        checked = (self._checked(batch) for batch in batches if batch.num_rows)
        file, rows = stage(self._generations().staging, partition, checked)
        return Receipt(partition, index, rows, str(file) if rows else "")

    def holds(self, receipt: Receipt) -> bool:
        return not receipt.rows or Path(receipt.location).is_file()

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        ordered = sorted((r for r in receipts if r.rows), key=lambda r: r.index)
        if not ordered:
            raise VectorIndexError(
                f"no rows reached collection {self.collection!r}: there is nothing to index.",
                hint="Look at the run's dead letters and filters.",
            )
        keys = [receipt.partition for receipt in ordered]
        if len(set(keys)) != len(keys):
            raise VectorIndexError(
                f"collection {self.collection!r}: a partition was handed over twice. This is a bug."
            )
        generations = self._generations()
        with generations.locked():
            now = generations.current()
            manifest = read_manifest(now) if now is not None else None
            if now is not None and manifest is not None and self._same(manifest, keys):
                return self._committed(now, manifest)
            files = [self._find(receipt, now, manifest) for receipt in ordered]
            folder = generations.publish(lambda building: self._build(building, keys, files))
            discard(generations.staging, [Path(receipt.location) for receipt in ordered])
            return self._committed(folder, read_manifest(folder))

    def current(self, committed: Committed) -> bool:
        folder = self._generations().current()
        if folder is None:
            return False
        with suppress(FileNotFoundError):
            return read_manifest(folder).commit == committed.detail.get("commit")
        return False

    # -- inside ---------------------------------------------------------------------------

    def _generations(self) -> Generations:
        return Generations(collections_dir() / self.collection)

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Bring the vectors to float32 of one width, where rows went through Python."""
        from sage_prefect.middleware.columns import vector_array, with_columns

        matrix = vectors(self.name, batch, self.column)
        return with_columns(batch, {self.column: vector_array(matrix)})

    def _config(self) -> dict[str, Any]:
        return {"kind": self.kind, "storage": self.storage}

    def _same(self, manifest: Manifest, keys: list[str]) -> bool:
        return (
            [part["key"] for part in manifest.parts] == keys
            and manifest.metric == self.metric
            and manifest.vector_column == self.column
            and manifest.id_column == self.id_column
            and manifest.index == self._config()
        )

    def _find(self, receipt: Receipt, now: Path | None, manifest: Manifest | None) -> Path:
        """The staged file; or the same partition in the current generation."""
        staged = Path(receipt.location)
        if staged.is_file():
            return staged
        for part in manifest.parts if manifest is not None else ():
            if part["key"] == receipt.partition and now is not None:
                return now / str(part["file"])
        raise VectorIndexError(
            f"collection {self.collection!r}: staged file {staged} is gone.",
            hint="Workers and the process that commits must share the data directory. Run again.",
        )

    def _build(self, folder: Path, keys: list[str], files: list[Path]) -> None:
        from sage_prefect.middleware.vector_index import VectorIndex

        index: VectorIndex | None = None
        dim = rows = 0
        columns: dict[str, None] = {}
        parts: list[dict[str, Any]] = []
        for number, (key, file) in enumerate(zip(keys, files, strict=True)):
            name = f"part-{number:05d}.arrow"
            _link(file, folder / name)
            before = rows
            for batch in batches_of(open_arrow(folder / name)):
                matrix = vectors(self.name, batch, self.column)
                if index is None:
                    dim = matrix.shape[1]
                    index = VectorIndex(
                        dim, metric=self.metric, kind=self.kind, storage=self.storage
                    )
                if matrix.shape[1] != dim:
                    raise VectorIndexError(
                        f"collection {self.collection!r}: vectors have {dim} and "
                        f"{matrix.shape[1]} dimensions.",
                        hint="One collection holds vectors of one model. Run the pipeline anew.",
                    )
                index.add(matrix, ids=np.arange(rows, rows + len(matrix), dtype=np.int64))
                rows += len(matrix)
                columns.update(dict.fromkeys(batch.schema.names))
            parts.append({"key": key, "file": name, "rows": rows - before})
        if index is None:
            raise VectorIndexError(f"collection {self.collection!r}: its staged files are empty.")
        self._refuse_duplicates(folder, parts)
        index.save(folder / INDEX)
        manifest = Manifest(
            name=self.collection,
            commit=uuid.uuid4().hex,
            rows=rows,
            dim=dim,
            metric=self.metric,
            vector_column=self.column,
            id_column=self.id_column,
            columns=[name for name in columns if name != self.column],
            parts=parts,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            index=self._config(),
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())

    def _refuse_duplicates(self, folder: Path, parts: list[dict[str, Any]]) -> None:
        if self.id_column is None:
            return
        arrays = []
        for part in parts:
            for batch in batches_of(open_arrow(folder / str(part["file"]))):
                arrays.append(batch.column(self.id_column).cast(pa.string()))
        counted = pc.value_counts(pa.chunked_array(arrays))
        repeated = counted.filter(pc.greater(counted.field("counts"), 1))
        if len(repeated):
            shown = ", ".join(repr(value) for value in repeated.field("values")[:3].to_pylist())
            raise VectorIndexError(
                f"collection {self.collection!r}: {len(repeated)} value(s) of {self.id_column!r} "
                f"are there more than once: {shown}.",
                hint="Give each document its own id, or use WriteVectors(..., id_column=None).",
            )

    def _committed(self, folder: Path, manifest: Manifest) -> Committed:
        size = sum(file.stat().st_size for file in folder.iterdir())
        return Committed(
            manifest.rows,
            str(folder),
            {
                "collection": manifest.name,
                "generation": folder.name,
                "commit": manifest.commit,
                "dim": manifest.dim,
                "bytes": size,
            },
        )


def _link(source: Path, target: Path) -> None:
    """The file under a second name; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
