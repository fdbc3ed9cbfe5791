"""Runs of a scenario: each policy, each variant, each seed; the best variant stands for its policy.

Within a seed all policies see the same requests. The best variant is chosen on all the seeds with
hindsight, which favours the baseline.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage_bench.simulation.assembly import Variant, assemble, variants
from sage_bench.simulation.controller import check_controller
from sage_bench.simulation.metrics import Figures, measure
from sage_bench.simulation.request_table import RequestFiles
from sage_bench.simulation.scenario import PolicySpec, ScenarioSpec
from sage_prefect.common.errors import BenchmarkError, near_name

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """One simulation's figures; ``cpu_s`` and ``rss_mb`` are those of the simulating process."""

    policy: str
    variant: str
    seed: int
    figures: Figures
    cpu_s: float
    rss_mb: float
    requests: int


@dataclass(frozen=True)
class PolicyResult:
    """A policy's runs, of its best variant, by seed."""

    policy: str
    variant: str
    runs: tuple[Run, ...]
    others: tuple[str, ...] = ()

    def values(self, metric: str) -> list[float]:
        """The metric of each run.

        Raises:
            BenchmarkError: there is no such metric; names a near one.
        """
        for run in self.runs:
            if metric not in run.figures:
                raise BenchmarkError(
                    f"policy {self.policy!r} has no metric {metric!r}.",
                    hint=near_name(metric, run.figures) or None,
                )
        return [run.figures[metric] for run in self.runs]

    def mean(self, metric: str) -> float:
        """The metric's mean over the seeds."""
        return float(np.mean(self.values(metric)))


def run_one(
    spec: ScenarioSpec,
    variant: Variant,
    seed: int,
    base: Path | None = None,
    requests: RequestFiles | None = None,
    number: int = 0,
) -> Run:
    """One simulation. Garbage collection is off while it runs: nothing in it makes cycles that
    matter, and the collector would walk millions of live objects.

    Args:
        requests: where its requests go; None: nowhere.
        number: names their file.
    """
    simulation = assemble(spec, variant, seed, base=base)
    collecting = gc.isenabled()
    gc.disable()
    started = time.process_time()
    try:
        records = simulation.run()
    finally:
        if collecting:
            gc.enable()
    cpu_s = time.process_time() - started
    figures = measure(simulation, spec.warmup_s, spec.duration_s)
    if requests is not None:
        requests.write(records, variant.of, variant.label, seed, number)
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Run(variant.of, variant.label, seed, figures, cpu_s, rss_mb, len(records))


def run_scenario(
    spec: ScenarioSpec,
    *,
    seeds: Sequence[int] | None = None,
    base: Path | None = None,
    processes: int = 1,
    requests: RequestFiles | None = None,
    report: Report | None = None,
) -> list[Run]:
    """Every variant of every policy with every seed, in that order.

    Args:
        processes: how many simulations run at once, each in a process of its own.
        requests: where single requests go; None: nowhere.

    Raises:
        UnknownNameError: a policy's name is not known.
        SageError: the scenario cannot be built.
    """
    for policy in spec.policies:
        check_controller(policy.use)
    planned = [
        (variant, seed)
        for policy in spec.policies
        for variant in variants(policy)
        for seed in (spec.seeds if seeds is None else seeds)
    ]
    jobs = [
        (spec, variant, seed, base, requests, number)
        for number, (variant, seed) in enumerate(planned)
    ]
    done: list[Run] = []
    for run in _runs(jobs, processes):
        done.append(run)
        if report is not None:
            report(f"{run.variant}, seed {run.seed}", len(done), len(jobs))
    return done


_Job = tuple[ScenarioSpec, Variant, int, Path | None, RequestFiles | None, int]


def _runs(jobs: list[_Job], processes: int) -> Iterator[Run]:
    if processes <= 1:
        for job in jobs:
            yield run_one(*job)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_one, *zip(*jobs, strict=True))


def best_variants(runs: Sequence[Run], spec: ScenarioSpec) -> list[PolicyResult]:
    """One result per policy: its best variant (see :class:`PolicySpec`).

    Raises:
        BenchmarkError: a policy has several variants and nothing says which is best, or a metric
            is not known.
    """
    policies = {policy.label: policy for policy in spec.policies}
    results = []
    for name in dict.fromkeys(run.policy for run in runs):
        policy = policies[name]
        found = [
            PolicyResult(name, label, tuple(r for r in runs if r.variant == label))
            for label in dict.fromkeys(r.variant for r in runs if r.policy == name)
        ]
        best = found[0]
        if len(found) > 1:
            best = _best(policy, policy.best_by or spec.best_by, spec.best_by, found)
        others = tuple(item.variant for item in found if item is not best)
        results.append(PolicyResult(name, best.variant, best.runs, others))
    return results


def _best(
    policy: PolicySpec, by: str | None, otherwise: str | None, found: Sequence[PolicyResult]
) -> PolicyResult:
    if by is None:
        raise BenchmarkError(
            f"policy {policy.label!r} has {len(found)} variants and no best_by.",
            hint="Set best_by to a metric, e.g. interactive.goodput.",
        )
    able = [
        item
        for item in found
        if all(item.mean(metric) >= least for metric, least in policy.floor.items())
    ]
    if not able and otherwise is not None:
        by = otherwise
    return max(able or found, key=lambda item: float(np.nan_to_num(item.mean(by), nan=-np.inf)))
