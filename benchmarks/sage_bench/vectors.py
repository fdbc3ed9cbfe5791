"""Exact search beside faiss: ``python -m sage_bench.vectors --help``.

Both systems hold the same vectors and answer the same queries, turn by turn (A B A B), at the same
number of threads. faiss is measured at its default settings and at the better of two BLAS
thresholds. Self-contained; results of a noisy machine are best read in CPU time per query.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]

FAISS_DEFAULT = "faiss IndexFlatIP, default"
FAISS_BLAS = "faiss IndexFlatIP, BLAS from batch 1"
SAGE = "SAGE flat float32"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, print a table and, with ``--json``, write all rounds to a file."""
    parser = argparse.ArgumentParser(prog="sage_bench.vectors", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="least time of one turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    vectors = _clustered(rng, options.rows, options.dim)
    queries = _clustered(rng, max(options.batches), options.dim)
    results: list[dict[str, Any]] = []
    for threads in options.threads:
        systems = _systems(vectors, threads)
        _check_agreement(systems, queries[:50], options.k)
        for batch in options.batches:
            results += _compare(systems, queries, batch, threads, options)
    _print(results, options)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "results": results}, file, indent=1)
    return 0


def _clustered(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors around 1000 centres: nearer to embeddings than pure noise."""
    centres = np.random.default_rng(0).standard_normal((1000, dim)).astype(np.float32)
    made = centres[rng.integers(0, len(centres), rows)]
    made += rng.standard_normal((rows, dim), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def _systems(vectors: NDArray[np.float32], threads: int) -> dict[str, Search]:
    import faiss

    from sage_prefect.middleware import VectorIndex

    ours = VectorIndex(vectors.shape[1], metric="ip")
    ours.add(vectors)
    theirs = faiss.IndexFlatIP(vectors.shape[1])
    theirs.add(vectors)
    default = faiss.cvar.distance_compute_blas_threshold

    def sage(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return ours.search(queries, k, threads=threads)[0]

    def faiss_with(threshold: int) -> Search:
        def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
            faiss.omp_set_num_threads(threads)
            faiss.cvar.distance_compute_blas_threshold = threshold
            found: NDArray[np.int64] = theirs.search(queries, k)[1]
            return found

        return search

    return {SAGE: sage, FAISS_DEFAULT: faiss_with(default), FAISS_BLAS: faiss_with(1)}


def _check_agreement(systems: dict[str, Search], queries: NDArray[np.float32], k: int) -> None:
    expected = systems[SAGE](queries, k)
    for name, search in systems.items():
        same = float((search(queries, k) == expected).mean())
        if same < 0.999:  # faiss may swap neighbours that differ by float32 rounding
            raise SystemExit(f"{name} agrees with {SAGE} in only {same:.2%} of the results")


def _compare(
    systems: dict[str, Search],
    queries: NDArray[np.float32],
    batch: int,
    threads: int,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for search in systems.values():
        search(queries[:batch], options.k)  # warm-up
    for _ in range(options.rounds):
        for name, search in systems.items():
            wall, cpu, done = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - wall < options.seconds:
                start = done % (len(queries) - batch + 1)
                search(queries[start : start + batch], options.k)
                done += batch
            rounds[name].append(
                (done / (time.perf_counter() - wall), done / (time.process_time() - cpu))
            )
    return [
        {
            "system": name,
            "batch": batch,
            "threads": threads,
            "qps_wall": median(r[0] for r in turns),
            "qps_cpu": median(r[1] for r in turns),
            "rounds": turns,
            "load": os.getloadavg()[0],
        }
        for name, turns in rounds.items()
    ]


def _print(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"{options.rows} x {options.dim}, k={options.k}, median of {options.rounds} rounds;")
    print("queries per second of wall time and per CPU second\n")
    print("| threads | batch | system | q/s | q/CPU s | load |\n|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['threads']} | {row['batch']} | {row['system']} | {row['qps_wall']:.0f} "
            f"| {row['qps_cpu']:.0f} | {row['load']:.1f} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
