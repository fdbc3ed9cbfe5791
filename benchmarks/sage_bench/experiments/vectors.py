"""Exact vector search beside faiss and NumPy: batches of 1, 32 and 1,000, one and two threads.

Every library runs at the best setting that a sweep finds for each case, ours and theirs
with the same budget; every answer is checked against float64 before anything is timed; each round
builds each index anew in a new process, for where its memory lies decides much at batch 1.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.experiments.vector_indexes import Truth, unit_vectors
from sage_bench.manifest import Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.session import RunResult, execute
from sage_bench.system import Case, Metric, Reading, System
from sage_bench.worker import Worker
from sage_prefect.common.errors import BenchmarkError, MissingDependencyError

INDEXES = "sage_bench.experiments.vector_indexes"


@dataclass(frozen=True)
class Library:
    """A library, the class that drives it, and the package whose version counts."""

    name: str
    target: str
    distribution: str


LIBRARIES = (
    Library("faiss IndexFlatIP", f"{INDEXES}:FaissFlat", "faiss-cpu"),
    Library("NumPy", f"{INDEXES}:NumpyFlat", "numpy"),
    Library("sage VectorIndex", f"{INDEXES}:SageFlat", "sage-prefect"),
)
PEER = "faiss IndexFlatIP"


class VectorOptions(Options):
    """``--set`` options of ``vectors``."""

    count: int = Field(100_000, ge=1000, description="Indexed vectors.")
    dim: int = Field(384, ge=1, description="Dimensions.")
    queries: int = Field(1000, ge=1000, description="Distinct queries.")
    clusters: int = Field(
        1000, ge=0, description="Centres that vectors lie around; 0: uniform, unlike embeddings."
    )
    k: int = Field(10, ge=1, description="Neighbours per query.")
    batches: str = Field("1,32,1000", description="Batch sizes.")
    threads: str = Field("1,2", description="Thread counts; those above the cores are left out.")
    target_s: float = Field(0.5, gt=0, description="Length of one measurement.")


class VectorSearch(Experiment):
    """Queries per second of exact search."""

    name = "vectors"
    title = "Exact vector search beside faiss IndexFlatIP and NumPy, best settings of each"
    expectation = (
        "With float32 storage a tie at batch 1, where every library reads all vectors once per "
        "query, and behind or level with BLAS at batch 1,000. Int8 codes, once there, read a "
        "quarter of the bytes and lead at all batches where the CPU has VNNI or AMX."
    )
    metrics = (
        Metric("qps", "queries/s", "higher"),
        Metric("cpu_ms_per_query", "ms CPU", "lower"),
    )
    options = VectorOptions
    # OpenMP's idle threads spin for some 0.2 s after a search, on the next system's cores.
    pause_s = 0.3

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Start the workers, check every answer, seek the best settings.

        Raises:
            BenchmarkError: a library's answers are not the exact ones.
            MissingDependencyError: the peer is not installed.
        """
        if importlib.util.find_spec("faiss") is None:
            raise MissingDependencyError("faiss-cpu", "peers", f"experiment {self.name!r}")
        count = min(options.count, 20_000) if config.quick else options.count
        cores = len(os.sched_getaffinity(0))
        threads = [t for t in _numbers(options.threads) if t <= cores] or [1]
        data = {
            "count": count,
            "dim": options.dim,
            "queries": options.queries,
            "clusters": options.clusters,
            "seed": config.seed,
        }
        base = unit_vectors(config.seed, count, options.dim, options.clusters)
        queries = unit_vectors(config.seed + 1, options.queries, options.dim, options.clusters)
        truth = Truth(base, queries, options.k)
        digest = hashlib.sha256(base.tobytes() + queries.tobytes()).hexdigest()
        del base, queries
        cases, found = [], {}
        for number in threads:
            workers = {
                library.name: stack.enter_context(
                    Worker(
                        library.target,
                        {**data, "threads": number},
                        log=folder.logs() / f"{library.distribution}-{number}.log",
                        env={"OMP_NUM_THREADS": str(number), "OPENBLAS_NUM_THREADS": str(number)},
                    )
                )
                for library in LIBRARIES
            }
            for batch in _numbers(options.batches):
                name = f"batch {batch}, {number} thread{'s' * (number > 1)}"
                systems = []
                for library in LIBRARIES:
                    worker = workers[library.name]
                    sweep = _sweep(worker, library, options, batch, truth)
                    found[f"{name}: {library.name}"] = sweep
                    best = max(sweep, key=lambda tried: float(tried["qps"]))
                    systems.append(
                        _system(worker, library, options, batch, number, best, config.quick)
                    )
                cases.append(Case(name, tuple(systems)))
        return Setup(
            cases=cases,
            workload=Workload(
                dataset=f"{count:,} unit vectors of {options.dim} dimensions, "
                + (f"{options.clusters} clusters" if options.clusters else "uniform"),
                dataset_sha256=digest,
                items=count,
                sizes={"dim": options.dim, "k": options.k, "queries": options.queries},
                arrival="closed loop, one batch at a time",
                mix="search only",
                tenants="none",
            ),
            facts={"exactness": "every answer's float64 score reaches the true k-th score less the "
                "rounding bound of float32, for every library at every setting, else the run ends; "
                "over all queries, of 200 for batches under 32",
                "sweep": found},
        )  # fmt: skip


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BenchmarkError(
            f"{text!r} is not a list of numbers.", hint="E.g. --set batches=1,32."
        ) from None


def _sweep(
    worker: Worker, library: Library, options: VectorOptions, batch: int, truth: Truth
) -> list[dict[str, Any]]:
    """Check and time each setting of a library for one batch size."""
    tried = []
    # One by one, a thousand queries would take longer to check than to measure.
    checked = options.queries if batch >= 32 else min(options.queries, 200)
    for settings in worker.call("choices"):
        found = worker.call("answers", k=options.k, batch=batch, count=checked, **settings)
        agreement = truth.agreement(np.array(found))
        if agreement.exact != 1.0:
            raise BenchmarkError(
                f"{library.name} with {settings} gave {1 - agreement.exact:.6f} of its answers "
                f"from beyond the true neighbours (recall {agreement.recall:.6f}).",
                hint="An inexact index cannot take part in a comparison of exact search.",
            )
        # Enough calls for a steady figure, the best of two: a sweep looks for what is possible.
        once = worker.call("measure", k=options.k, batch=batch, calls=1, **settings)
        calls = max(1, min(round(0.2 / max(once["wall_s"], 1e-5)), 2000))
        costs = [
            worker.call("measure", k=options.k, batch=batch, calls=calls, **settings)
            for _ in range(2)
        ]
        rate = max(cost["queries"] / cost["wall_s"] for cost in costs)
        tried.append({"settings": settings, "qps": round(rate, 2), "recall": agreement.recall})
    return tried


def _system(
    worker: Worker,
    library: Library,
    options: VectorOptions,
    batch: int,
    threads: int,
    best: dict[str, Any],
    quick: bool,
) -> System:
    settings = best["settings"]
    target = 0.1 if quick else options.target_s
    calls = max(1, round(target * best["qps"] / batch))
    return System(
        library.name,
        _measure(worker, options.k, batch, calls, settings),
        role="peer" if library.name == PEER else "subject",
        config={**settings, "threads": threads, "batch": batch, "calls": calls, "k": options.k},
        version=importlib.metadata.version(library.distribution),
    )


def _measure(
    worker: Worker, k: int, batch: int, calls: int, settings: dict[str, Any]
) -> Callable[[int], Reading]:
    def measure(number: int) -> Reading:
        offset = max(number, 0) * calls
        worker.renew(number)
        worker.call("measure", k=k, batch=batch, calls=1, **settings)  # the new one's warm-up
        cost = worker.call("measure", k=k, batch=batch, calls=calls, offset=offset, **settings)
        return Reading(
            values={
                "qps": cost["queries"] / cost["wall_s"],
                "cpu_ms_per_query": 1000 * cost["cpu_s"] / cost["queries"],
            },
            wall_s=cost["wall_s"],
            cpu_s=cost["cpu_s"],
            detail={"queries": cost["queries"]},
        )

    return measure


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(VectorSearch(), config)
