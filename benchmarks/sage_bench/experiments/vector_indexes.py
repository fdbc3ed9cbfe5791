"""The exact indexes that the ``vectors`` experiment compares; each lives in a worker of its own.

All hold the same unit vectors, made from the same seed, and answer by inner product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_bench.worker import timed

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


def unit_vectors(seed: int, count: int, dim: int, clusters: int) -> Vectors:
    """float32 [count, dim] of norm 1: around cluster centres, or uniform for ``clusters=0``."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    if clusters:
        # Centres of their own stream: data and queries share them.
        centres = np.random.default_rng(7).standard_normal((clusters, dim), dtype=np.float32)
        vectors += centres[rng.integers(0, clusters, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def true_neighbours(base: Vectors, queries: Vectors, k: int, block: int = 8192) -> Ids:
    """The exact top k by float64 inner product, best first: int64 [queries, k]."""
    wide = queries.astype(np.float64)
    scores = np.empty((len(queries), 0))
    ids = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(base), block):
        part = wide @ base[start : start + block].astype(np.float64).T
        scores = np.hstack([scores, part])
        numbers = np.arange(start, start + part.shape[1])
        ids = np.hstack([ids, np.broadcast_to(numbers, part.shape)])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, best, axis=1)
        ids = np.take_along_axis(ids, best, axis=1)
    return ids


@dataclass(frozen=True)
class Agreement:
    """How an index's answers compare with the true ones.

    Args:
        recall: share of the true neighbours that were found, by id.
        exact: share of returned vectors whose float64 score is at least the true k-th score less
            the rounding bound of a float32 inner product. Two neighbours that are nearer to each
            other than that may change places: float32 cannot tell them apart.
    """

    recall: float
    exact: float


class Truth:
    """The exact neighbours of ``queries`` in ``base`` (unit vectors, inner product)."""

    def __init__(self, base: Vectors, queries: Vectors, k: int) -> None:
        self._base, self._queries = base, queries.astype(np.float64)
        self.ids = true_neighbours(base, queries, k)
        self._kth = self._scores(self.ids)[:, -1]
        # dim * 2^-24 * sum |q_i x_i|, and the sum is at most 1 for unit vectors.
        self._rounding = base.shape[1] * 2.0**-24

    def _scores(self, ids: Ids) -> NDArray[np.float64]:
        found = self._base[ids].astype(np.float64)
        scores: NDArray[np.float64] = np.einsum("qkd,qd->qk", found, self._queries[: len(ids)])
        return scores

    def agreement(self, ids: Ids) -> Agreement:
        """Of the answers [m, k] to the first m queries."""
        same = [len(set(row) & set(true)) for row, true in zip(ids, self.ids, strict=False)]
        near = self._scores(ids) >= self._kth[: len(ids), None] - self._rounding
        distinct = [len(set(row)) == len(row) for row in ids.tolist()]
        return Agreement(
            recall=float(np.mean(same)) / ids.shape[1],
            exact=float(np.mean(near & np.array(distinct)[:, None])),
        )


class ExactIndex(ABC):
    """An index over the shared data, and the queries to put to it."""

    def __init__(
        self, count: int, dim: int, queries: int, clusters: int, seed: int, threads: int
    ) -> None:
        self.threads = threads
        self.queries = unit_vectors(seed + 1, queries, dim, clusters)
        self.build(unit_vectors(seed, count, dim, clusters))

    @abstractmethod
    def build(self, base: Vectors) -> None:
        """Index ``base`` [n, dim]."""

    @abstractmethod
    def search(self, queries: Vectors, k: int) -> Ids:
        """Ids [m, k], best first."""

    def choices(self) -> list[dict[str, Any]]:
        """The settings that a sweep should try."""
        return [{}]

    def configure(self, **settings: Any) -> None:
        """Apply settings that a sweep tries."""
        for name, value in settings.items():
            setattr(self, name, value)

    def answers(self, k: int, batch: int, count: int, **settings: Any) -> list[list[int]]:
        """The ids found for the first ``count`` queries, asked in batches of ``batch``."""
        self.configure(**settings)
        parts = [
            self.search(self.queries[start : min(start + batch, count)], k)
            for start in range(0, count, batch)
        ]
        return [[int(number) for number in row] for part in parts for row in part]

    def measure(
        self, k: int, batch: int, calls: int, offset: int = 0, **settings: Any
    ) -> dict[str, float]:
        """Cost of ``calls`` searches of ``batch`` queries each; the queries differ from call to
        call, beginning with ``offset``."""
        self.configure(**settings)
        whole = len(self.queries) // batch
        starts = [((offset + call) % whole) * batch for call in range(calls)]

        def work() -> None:
            for start in starts:
                self.search(self.queries[start : start + batch], k)

        cost, _ = timed(work)
        return {**cost, "queries": float(calls * batch)}


class FaissFlat(ExactIndex):
    """faiss ``IndexFlatIP``. ``blas_threshold``: from this batch size on it multiplies matrices;
    None leaves faiss's own default."""

    blas_threshold: int | None = None

    def build(self, base: Vectors) -> None:
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self._faiss = faiss
        self._default = faiss.cvar.distance_compute_blas_threshold
        self._index = faiss.IndexFlatIP(base.shape[1])
        self._index.add(base)

    def choices(self) -> list[dict[str, Any]]:
        return [{"blas_threshold": threshold} for threshold in (None, 20, 1)]

    def configure(self, **settings: Any) -> None:
        super().configure(**settings)
        threshold = self.blas_threshold if self.blas_threshold is not None else self._default
        self._faiss.cvar.distance_compute_blas_threshold = threshold

    def search(self, queries: Vectors, k: int) -> Ids:
        return np.asarray(self._index.search(queries, k)[1], dtype=np.int64)


class NumpyFlat(ExactIndex):
    """A matrix product and ``argpartition``: what one writes without a library."""

    def build(self, base: Vectors) -> None:
        # Threads: OPENBLAS_NUM_THREADS of the worker.
        self._transposed = np.ascontiguousarray(base.T)

    def search(self, queries: Vectors, k: int) -> Ids:
        scores = queries @ self._transposed
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)


class SageFlat(ExactIndex):
    """``VectorIndex(kind="flat")``; ``storage`` is what its first pass reads."""

    storage: str = "float32"

    def build(self, base: Vectors) -> None:
        from sage_prefect.middleware import VectorIndex

        self._indexes: dict[str, VectorIndex] = {}
        for storage in ("float32", "bfloat16", "int8"):
            try:
                index = VectorIndex(base.shape[1], metric="ip", kind="flat", storage=storage)
            except ValueError:
                if storage == "float32":
                    raise
                continue  # this version has no such storage: the sweep does not offer it
            index.add(base)
            self._indexes[storage] = index

    def choices(self) -> list[dict[str, Any]]:
        return [{"storage": storage} for storage in self._indexes]

    def search(self, queries: Vectors, k: int) -> Ids:
        ids, _ = self._indexes[self.storage].search(queries, k, threads=self.threads)
        return np.asarray(ids, dtype=np.int64)
