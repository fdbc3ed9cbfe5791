"""Nearest-neighbour search over vectors kept in memory or in a mapped file.

The work is done by ``sage_prefect._native`` outside the GIL; this module checks arguments, takes
NumPy and Arrow arrays in without copies, and keeps payload rows beside the vectors.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sage_prefect import _native
from sage_prefect.common.errors import CorruptFileError, VectorIndexError

Metric: TypeAlias = Literal["cosine", "ip", "l2"]
Kind: TypeAlias = Literal["flat", "graph"]
Storage: TypeAlias = Literal["int8", "bfloat16", "float32"]
Ids: TypeAlias = NDArray[np.int64]
Payload: TypeAlias = "pa.Table | pa.RecordBatch | Sequence[Mapping[str, Any]]"

_MAX_RESULTS = 1 << 36  # cells of one result; more would not fit any machine's memory
_MAX_PAYLOAD_CHUNKS = 64
_MAX_EFFORT = 1 << 20  # beyond it an exact search is faster


class VectorIndex:
    """Top-k search, exact or by a graph, by cosine similarity, inner product or squared distance.

    Results of a flat index are those of a float64 computation on the stored vectors, ties going to
    the smaller id: the same on every CPU and for every number of threads. A zero vector has cosine
    0 to everything.

    With ``storage="int8"``, the default, or ``"bfloat16"`` a search reads codes of a quarter or
    half the size, with a bound on what they have lost; every vector that the bound does not rule
    out is scored again from its float32 values. The results are therefore the same, to the bit,
    as with ``"float32"``, only sooner (docs/decisions/0014). Without ``keep_vectors`` there are
    no float32 values: what is stored, searched exactly and returned is what the codes stand for.

    A graph index (``kind="graph"``) looks at few vectors and may miss neighbours: the fewer, the
    more ``effort`` a search makes. What it returns is scored in float64 like the results of a flat
    index, and it always returns ``k`` vectors where there are as many: where a filter leaves few,
    or the graph leads to too few, it searches exactly (docs/decisions/0015).

    Safe from many threads: searches run beside each other and beside changes, which show in full
    or not at all.

    Args:
        dim: length of the vectors, 1 to 8192.
        metric: ``"cosine"`` and ``"ip"`` give similarities (higher first), ``"l2"`` squared
            distances (lower first).
        kind: ``"flat"`` looks at every vector, ``"graph"`` follows links between near ones.
        storage: what a search reads first: ``"float32"``, ``"bfloat16"`` (2 bytes a number) or
            ``"int8"`` (1 byte a number, one scale a vector).
        keep_vectors: keep the float32 vectors beside codes, for exact results; with ``"float32"``
            they are always kept.
        degree: of a graph: links that a vector keeps, 2 to 1024 (up to half as many more until
            they are pruned). A flat index does not use it.
        build_effort: of a graph: near vectors that are looked at while a vector is linked, 1 to
            100,000; more makes a better graph and takes longer. A flat index does not use it.

    Raises:
        ValueError: an argument is out of range or names something that there is not.

    Example:
        >>> import numpy as np
        >>> index = VectorIndex(dim=2, metric="ip")
        >>> index.add(np.eye(2, dtype=np.float32)).tolist()
        [0, 1]
        >>> ids, scores = index.search(np.array([0.2, 0.9], np.float32), k=1)
        >>> ids.tolist(), scores.round(1).tolist()
        ([[1]], [[0.8999999761581421]])
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "cosine",
        kind: Kind = "flat",
        storage: Storage = "int8",
        keep_vectors: bool = True,
        degree: int = 32,
        build_effort: int = 200,
    ) -> None:
        _require_name("metric", metric, ("cosine", "ip", "l2"))
        _require_name("kind", kind, ("flat", "graph"))
        _require_name("storage", storage, ("int8", "bfloat16", "float32"))
        if not isinstance(keep_vectors, bool):
            raise TypeError(f"keep_vectors is {keep_vectors!r}; it must be True or False")
        if not keep_vectors and storage == "float32":
            raise ValueError(
                "keep_vectors=False needs storage='int8' or 'bfloat16'; with storage='float32' "
                "the vectors are what is stored"
            )
        degree = _integer("degree", degree, least=2, greatest=1024)
        build_effort = _integer("build_effort", build_effort, least=1, greatest=100_000)
        dim = _integer("dim", dim, least=1, greatest=8192)
        if kind == "flat":
            self._attach(_native.FlatIndex(dim, metric, storage, keep_vectors))
        else:
            self._attach(
                _native.GraphIndex(dim, metric, storage, keep_vectors, degree, build_effort)
            )

    def _attach(self, native: _native.FlatIndex) -> None:
        self._native = native
        self._changes = threading.RLock()  # keeps payload rows in step with vector rows
        self._payload: pa.Table | None = None  # one row per native row, removed ones included

    # -- what it is ------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        return self._native.dim

    @property
    def metric(self) -> str:
        return self._native.metric

    @property
    def kind(self) -> str:
        return "graph" if isinstance(self._native, _native.GraphIndex) else "flat"

    @property
    def storage(self) -> str:
        return self._native.storage

    @property
    def keep_vectors(self) -> bool:
        """Whether the float32 vectors are there."""
        return self._native.keeps_vectors

    @property
    def read_only(self) -> bool:
        return self._native.read_only

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that vectors, ids, links and payload take, without mapped pages."""
        payload = self._payload
        native = self._native.stats()["memory_bytes"]
        if isinstance(self._native, _native.GraphIndex):
            native += self._native.link_bytes
        return native + (payload.nbytes if payload is not None else 0)

    @property
    def ids(self) -> Ids:
        """The ids that are there, in the order in which they were added."""
        return self._native.live_ids()

    def __len__(self) -> int:
        return len(self._native)

    def __contains__(self, id: object) -> bool:
        if isinstance(id, bool) or not isinstance(id, (int, np.integer)):
            return False
        return bool(self._native.rows_of(np.array([id], np.int64))[0] >= 0)

    def __repr__(self) -> str:
        return (
            f"VectorIndex(dim={self.dim}, metric={self.metric!r}, kind={self.kind!r}, "
            f"storage={self.storage!r}, rows={len(self)})"
        )

    def stats(self) -> dict[str, Any]:
        """Counts for people and metrics.

        ``rows``, ``removed`` (waiting for :meth:`compact`), ``blocks``, ``memory_bytes``,
        ``mapped_bytes``; since the index was made or opened: ``queries``, ``rows_scanned``
        (scores within bounds, or on walks), ``rows_rescored`` (float64 scores); of a graph
        ``degree``, ``build_effort`` and ``linked_rows``; and dim, metric, kind, storage,
        keep_vectors, the instruction set ``isa`` and the ``payload_columns``.
        """
        payload = self._payload
        graph: dict[str, int] = {}
        if isinstance(self._native, _native.GraphIndex):
            graph = {
                name: getattr(self._native, name)
                for name in ("degree", "build_effort", "linked_rows")
            }
        return {
            **self._native.stats(),
            **graph,
            "memory_bytes": self.memory_bytes,
            "dim": self.dim,
            "metric": self.metric,
            "kind": self.kind,
            "storage": self.storage,
            "keep_vectors": self.keep_vectors,
            "isa": self._native.isa,
            "payload_columns": payload.column_names if payload is not None else [],
        }

    # -- changes ---------------------------------------------------------------------------

    def add(self, vectors: Any, ids: Any = None, payload: Payload | None = None) -> Ids:
        """Add vectors; they can be found as soon as this returns. All of them or, on error, none.

        A graph links them before this returns; searches find them by an exact scan meanwhile.

        Args:
            vectors: float32 [n, dim]: a NumPy array (read in place when C-contiguous) or an Arrow
                ``FixedSizeList<float32>[dim]`` array without nulls (read in place when in one
                chunk).
            ids: int64 [n], each from 0 to 2**63 - 2 and not in the index yet. Without them, ids
                count on from the greatest one ever used, starting at 0.
            payload: n rows kept beside the vectors: an Arrow table or batch, or a list of dicts.

        Returns:
            The ids, int64 [n].

        Raises:
            TypeError: wrong dtype or kind of array.
            ValueError: wrong shape, NaN or infinity (names row and column), an id that is
                negative, given twice or in the index already (:meth:`upsert` replaces).
            VectorIndexError: the index is read-only.
        """
        return self._add(vectors, ids, payload, replace=False)

    def upsert(self, vectors: Any, ids: Any, payload: Payload | None = None) -> Ids:
        """Like :meth:`add`, but an id that is there already gets the new vector and payload."""
        if ids is None:
            raise TypeError("upsert needs ids; add() numbers new vectors by itself")
        return self._add(vectors, ids, payload, replace=True)

    def _add(self, vectors: Any, ids: Any, payload: Payload | None, *, replace: bool) -> Ids:
        self._require_writable("add to")
        matrix = _matrix("vectors", vectors, self.dim)
        id_array = None if ids is None else _id_array("ids", ids)
        with self._changes:
            table = self._payload_with(len(matrix), payload)
            added = self._native.add(matrix, id_array, replace)
            self._payload = table
        return added

    def remove(self, ids: Any) -> int:
        """Remove vectors by id (int64); their memory is freed by :meth:`compact`.

        Returns:
            How many were removed (an id given twice counts once).

        Raises:
            ValueError: an id is not in the index; nothing is removed then.
            VectorIndexError: the index is read-only.
        """
        self._require_writable("remove from")
        with self._changes:
            return self._native.remove(_id_array("ids", ids))

    def compact(self) -> None:
        """Free the memory of removed vectors and payload rows. Searches go on meanwhile."""
        self._require_writable("compact")
        with self._changes, _corruption_named():
            removed = self._native.stats()["removed"]
            rows = self._native.compact()
            if removed and self._payload is not None:
                self._payload = self._payload.take(pa.array(rows)).combine_chunks()

    # -- search ----------------------------------------------------------------------------

    def search(
        self,
        queries: Any,
        k: int,
        effort: int | None = None,
        allow: Any = None,
        threads: int | None = None,
    ) -> tuple[Ids, NDArray[np.float32]]:
        """The k best vectors for each query, best first.

        Args:
            queries: float32 [m, dim] or [dim] (then m is 1), NumPy or Arrow as in :meth:`add`.
            k: how many; beyond what exists the result is filled with id -1 and score NaN.
            effort: of a graph: near vectors that the walk keeps, at least 1; the default is 64, and
                less than ``k`` counts as ``k``. A flat index is exact and does not use it.
            allow: restricts the result: an int64 array of ids (those not in the index count for
                nothing), or a bool array where ``allow[id]`` says whether ``id`` may be returned
                (ids beyond its end may not).
            threads: at most so many; without it, SAGE_NATIVE_THREADS or one per processor. Small
                searches take fewer.

        Returns:
            ids int64 [m, k] and scores float32 [m, k]: similarities for cosine and ip, squared
            distances for l2.

        Raises:
            TypeError: wrong dtype or kind of array.
            ValueError: wrong shape, NaN or infinity, k below 1.
            CorruptFileError: the part of the mapped file that is searched is damaged.
        """
        k = _integer("k", k, least=1)
        width = 0 if effort is None else _integer("effort", effort, 1, _MAX_EFFORT)
        thread_count = 0 if threads is None else _integer("threads", threads, 1, 4096)
        if isinstance(queries, np.ndarray) and queries.ndim == 1:
            queries = queries.reshape(1, -1)
        matrix = _matrix("queries", queries, self.dim)
        if len(matrix) * k > _MAX_RESULTS:
            raise ValueError(
                f"k is {k}: {len(matrix)} queries would give {len(matrix) * k} results"
            )
        allow_ids: Ids | None = None
        allow_mask: NDArray[np.bool_] | None = None
        if isinstance(allow, np.ndarray) and allow.dtype == np.bool_:
            if allow.ndim != 1:
                raise ValueError(f"allow has shape {allow.shape}; a mask has one dimension")
            allow_mask = np.ascontiguousarray(allow)
        elif allow is not None:
            allow_ids = _id_array("allow", allow)
        with _corruption_named():
            return self._native.search(matrix, k, width, allow_ids, allow_mask, thread_count)

    def vectors(self, ids: Any) -> NDArray[np.float32]:
        """The stored vectors of ids, float32 [n, dim]. ValueError names an id that is not there."""
        with _corruption_named():
            return self._native.vectors(_id_array("ids", ids))

    def payload(self, ids: Any) -> pa.Table:
        """The payload rows of ids (int64, any shape, read row by row), in their order.

        Id -1, with which :meth:`search` fills up, gives a row of nulls, as does an id that was
        added without payload. Without any payload the table has no columns.

        Raises:
            ValueError: an id is not in the index.
        """
        wanted = _id_array("ids", np.asarray(ids).reshape(-1) if np.ndim(ids) != 1 else ids)
        with self._changes:
            rows = self._native.rows_of(wanted)
            unknown = np.flatnonzero((rows < 0) & (wanted != -1))
            if len(unknown):
                raise ValueError(f"id {wanted[unknown[0]]} is not in the index")
            if self._payload is None:
                return pa.table({})
            return self._payload.take(pa.array(rows, mask=rows < 0))

    # -- files -----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write vectors, ids and payload to one file; removed vectors are left out.

        The file appears in full or not at all: a reader, or a crash, sees the old one or the new
        one. An index that was opened from the same path stays usable.

        Raises:
            OSError: the file cannot be written (disk full, no permission...).
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._changes, _corruption_named():
            table = self._payload
            if table is not None and self._native.stats()["removed"]:
                table = table.take(pa.array(self._native.live_rows()))
            buffer = None if table is None else _to_ipc(table)
            self._native.save(os.fspath(target), buffer)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], mmap: bool = True, read_only: bool = False
    ) -> VectorIndex:
        """Open a saved index.

        Args:
            path: what :meth:`save` wrote.
            mmap: map the file: opening is immediate and processes share its pages; each part of
                the vectors is checked before its first use. Without it, the file is read into
                memory and checked at once.
            read_only: refuse changes. Otherwise changes stay in memory until :meth:`save`.

        Raises:
            FileNotFoundError, OSError: the file is missing or cannot be read.
            CorruptFileError: the file is damaged, truncated or of another version; names the
                section.
        """
        native_path = os.fspath(path)
        with _corruption_named():
            native = _native.FlatIndex.open(native_path, mmap, read_only)
            index = cls.__new__(cls)
            index._attach(native)
            section = native.payload_section()
        if section is not None:
            index._payload = _from_ipc(section, native_path, len(index))
        return index

    def verify(self) -> None:
        """Check all checksums of the file that the index was opened from (CorruptFileError)."""
        with _corruption_named():
            self._native.verify()

    # -- inside ----------------------------------------------------------------------------

    def _require_writable(self, deed: str) -> None:
        if self.read_only:
            raise VectorIndexError(
                f"cannot {deed} this vector index: it was opened with read_only=True.",
                hint="Open it with read_only=False.",
            )

    def _payload_with(self, rows: int, payload: Payload | None) -> pa.Table | None:
        """The payload table after an add of ``rows`` rows."""
        before = self._payload
        if payload is None:
            if before is None:
                return None
            fresh = before.schema.empty_table()
        else:
            fresh = _payload_table(payload, rows)
            if before is None:
                stats = self._native.stats()
                before = _null_rows(fresh.schema, stats["rows"] + stats["removed"])
        if len(fresh) != rows:
            fresh = _null_rows(fresh.schema, rows)
        try:
            table = pa.concat_tables([before, fresh], promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise TypeError(f"payload does not fit the payload that is there: {error}") from error
        if table.num_columns and table.column(0).num_chunks > _MAX_PAYLOAD_CHUNKS:
            table = table.combine_chunks()
        return table


@contextmanager
def _corruption_named() -> Iterator[None]:
    try:
        yield
    except _native.CorruptFile as error:
        raise CorruptFileError(
            f"vector index file {error}.",
            hint="Restore it from a copy, or build the index again.",
        ) from error


def _require_name(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} is {value!r}; it must be one of {', '.join(known)}")


def _integer(what: str, value: Any, least: int, greatest: int | None = None) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}; it must be a whole number")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{what} is {value!r}; it must be a whole number") from error
    if number < least or (greatest is not None and number > greatest):
        bounds = f"at least {least}" if greatest is None else f"from {least} to {greatest}"
        raise ValueError(f"{what} is {number}; it must be {bounds}")
    return number


def _matrix(what: str, value: Any, dim: int) -> NDArray[np.float32]:
    """float32 [n, dim], C-contiguous, from NumPy or Arrow."""
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        value = _arrow_matrix(what, value, dim)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{what} is a {type(value).__name__}; it must be a float32 NumPy array or an Arrow "
            "FixedSizeList<float32> array"
        )
    if value.dtype != np.float32:
        raise TypeError(f"{what} has dtype {value.dtype}; it must be float32 (astype does it)")
    if value.ndim != 2 or value.shape[1] != dim:
        raise ValueError(f"{what} has shape {value.shape}; it must be (n, {dim})")
    return np.ascontiguousarray(value)


def _arrow_matrix(what: str, value: pa.Array | pa.ChunkedArray, dim: int) -> Any:
    if isinstance(value, pa.ChunkedArray):
        value = value.chunk(0) if value.num_chunks == 1 else value.combine_chunks()
    kind = value.type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise TypeError(f"{what} is an Arrow array of {kind}; it must be FixedSizeList<float32>")
    if kind.list_size != dim:
        raise ValueError(f"{what} has lists of {kind.list_size} values; they must have {dim}")
    if value.null_count:
        row = int(np.flatnonzero(value.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{what} row {row} is null")
    flat = value.flatten()  # respects the offset of a slice
    if flat.null_count:
        at = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{what} row {at // dim}, column {at % dim} is null")
    return flat.to_numpy(zero_copy_only=True).reshape(-1, dim)


def _id_array(what: str, value: Any) -> Ids:
    """int64 [n], C-contiguous. Other integers are converted where that loses nothing."""
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        if value.null_count:
            raise ValueError(f"{what} holds {value.null_count} nulls")
        value = (
            value.to_numpy(zero_copy_only=False)
            if isinstance(value, pa.Array)
            else (value.to_numpy())
        )
    array = np.asarray(value)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} has dtype {array.dtype}; it must be int64")
    if array.ndim != 1:
        raise ValueError(f"{what} has shape {array.shape}; it must have one dimension")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{what} holds {int(array.max())}; ids must be below 2**63 - 1")
    return np.ascontiguousarray(array, dtype=np.int64)


def _payload_table(payload: Payload, rows: int) -> pa.Table:
    if isinstance(payload, pa.RecordBatch):
        table = pa.Table.from_batches([payload])
    elif isinstance(payload, pa.Table):
        table = payload
    elif isinstance(payload, Sequence) and not isinstance(payload, (str, bytes)):
        for i, row in enumerate(payload):
            if not isinstance(row, Mapping):
                raise TypeError(f"payload[{i}] is a {type(row).__name__}; it must be a dict")
        # from_pylist takes the columns of the first row only.
        names = list(dict.fromkeys(name for row in payload for name in row))
        table = pa.table({name: [row.get(name) for row in payload] for name in names})
        if not names:
            return pa.table({})
    else:
        raise TypeError(
            f"payload is a {type(payload).__name__}; it must be an Arrow table or batch, or a "
            "list of dicts"
        )
    if len(set(table.column_names)) != table.num_columns:
        raise ValueError(f"payload has a column twice: {', '.join(table.column_names)}")
    if table.num_columns and len(table) != rows:
        raise ValueError(f"payload has {len(table)} rows for {rows} vectors")
    return table


def _null_rows(schema: pa.Schema, rows: int) -> pa.Table:
    columns = [pa.nulls(rows, field.type) for field in schema]
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


def _to_ipc(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _from_ipc(section: bytes, path: str, rows: int) -> pa.Table:
    try:
        table = pa.ipc.open_stream(section).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptFileError(f"vector index file {path}: section 'payload': {error}.") from error
    if len(table) != rows:
        raise CorruptFileError(
            f"vector index file {path}: section 'payload': has {len(table)} rows "
            f"for {rows} vectors."
        )
    return table
