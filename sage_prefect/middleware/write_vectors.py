"""``WriteVectors``: rows with vectors to a searchable collection, published once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import GraphError, VectorIndexError
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.middleware.collection import (
    INDEX,
    MANIFEST,
    ROWS,
    Manifest,
    collections_dir,
    read_manifest,
)
from sage_prefect.middleware.columns import column, vector_array, vectors, with_columns
from sage_prefect.middleware.generations import Generations
from sage_prefect.middleware.staging import (
    check_name,
    conform,
    discard,
    open_arrow,
    stage,
    unify,
)
from sage_prefect.middleware.vector_index import Kind, Metric, Storage, VectorIndex


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
        GraphError: the name cannot be a folder's, or this version has no such index.
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
        try:
            # What this version cannot build is refused now, not after all is embedded.
            VectorIndex(1, metric=metric, kind=kind, storage=storage)
        except ValueError as error:
            raise GraphError(f"WriteVectors({name!r}): {error}.") from None
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
        if not receipt.rows or Path(receipt.location).is_file():
            return True
        # A run that died right after its commit finds its partitions published.
        manifest = self._generations().read(read_manifest)
        return manifest is not None and manifest.part(receipt.partition) is not None

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
            again = any(Path(receipt.location).is_file() for receipt in ordered)  # staged anew
            if not again and now and manifest and self._same(manifest, keys):
                return self._committed(now, manifest)
            parts = [self._part(receipt, now, manifest) for receipt in ordered]
            folder = generations.publish(lambda building: self._build(building, parts))
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

    def _part(self, receipt: Receipt, now: Path | None, manifest: Manifest | None) -> _Part:
        """The staged partition; or the same one in the current generation."""
        staged = Path(receipt.location)
        if staged.is_file():
            return _Part(receipt.partition, staged)
        known = manifest.part(receipt.partition) if manifest is not None else None
        if now is not None and known is not None:
            return _Part(
                receipt.partition, now / ROWS, int(known["first_batch"]), int(known["batches"])
            )
        raise VectorIndexError(
            f"collection {self.collection!r}: staged file {staged} is gone.",
            hint="Workers and the process that commits must share the data directory. Run again.",
        )

    def _build(self, folder: Path, parts: list[_Part]) -> None:
        schemas = [open_arrow(part.file).schema for part in parts]
        dims = sorted({schema.field(self.column).type.list_size for schema in schemas})
        if len(dims) > 1:
            raise VectorIndexError(
                f"collection {self.collection!r}: vectors of {dims} dimensions.",
                hint="One collection holds vectors of one model. Run the pipeline anew.",
            )
        schema = unify(schemas, f"collection {self.collection!r}")
        index = VectorIndex(dims[0], metric=self.metric, kind=self.kind, storage=self.storage)
        identities: list[pa.Array] = []
        entries: list[dict[str, Any]] = []
        rows = number = 0
        with pa.ipc.new_file(str(folder / ROWS), schema) as writer:
            for part in parts:
                start, first = rows, number
                for batch in part.read():
                    writer.write_batch(conform(batch, schema))
                    matrix = vectors(self.name, batch, self.column)
                    index.add(matrix, ids=np.arange(rows, rows + len(matrix), dtype=np.int64))
                    if self.id_column is not None:
                        identities.append(
                            column(self.name, batch, self.id_column).cast(pa.string())
                        )
                    rows += len(matrix)
                    number += 1
                entries.append(
                    {
                        "key": part.key,
                        "rows": rows - start,
                        "first_batch": first,
                        "batches": number - first,
                    }
                )
        self._refuse_duplicates(identities)
        index.save(folder / INDEX)
        manifest = Manifest(
            name=self.collection,
            commit=uuid.uuid4().hex,
            rows=rows,
            dim=dims[0],
            metric=self.metric,
            vector_column=self.column,
            id_column=self.id_column,
            columns=[name for name in schema.names if name != self.column],
            parts=entries,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            index=self._config(),
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())

    def _refuse_duplicates(self, identities: list[pa.Array]) -> None:
        if not identities:
            return
        counted = pc.value_counts(pa.chunked_array(identities))
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


@dataclass(frozen=True)
class _Part:
    """A partition: a staged file, or a run of batches of a generation."""

    key: str
    file: Path
    first: int = 0
    count: int | None = None

    def read(self) -> Iterator[pa.RecordBatch]:
        reader = open_arrow(self.file)
        stop = reader.num_record_batches if self.count is None else self.first + self.count
        for at in range(self.first, stop):
            yield reader.get_batch(at)
