"""Does a live run agree with its simulation? Percentile by percentile, with tolerances that were
chosen before the first run (docs/mock-engine.md). Pure.

A row passes when the interval of live / simulated lies within 1 +- (tolerance + A/A of both sides).
The live A/A is how far a second live run of the same arrivals is from the first: what the machine
cannot repeat, the simulation need not explain. The simulated A/A is how far a simulation with a
network that is a little slower is from the first: some policies make large differences of tiny
ones, and then one simulation is one draw of many. A row fails when the estimate lies outside, and
is unproved between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sage_bench.claims import Verdict
from sage_bench.live.observation import METRICS, Array, Observation, check_same_arrivals
from sage_bench.stats import samples_needed

TOLERANCES = {0.5: 0.10, 0.9: 0.15, 0.95: 0.15, 0.99: 0.20}
"""Relative, by quantile."""
DONE_TOLERANCE = 0.01
"""Shares of completed requests may differ by this much."""
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """An estimate and its bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One quantile of one metric of one workload; seconds."""

    workload: str
    metric: str
    quantile: float
    requests: int
    simulated_s: float
    live_s: float
    ratio: Ratio
    """Live / simulated; the live side is the first run."""
    repeat: Ratio
    """Second live run / first: the live A/A."""
    nudged: Ratio
    """Simulation with a slower network / the first: the simulated A/A."""
    allowed: float
    verdict: Verdict


@dataclass(frozen=True)
class Completion:
    """Shares of a workload's requests that were answered whole: simulated, first, second run."""

    workload: str
    offered: int
    simulated: float
    live: float
    repeat: float
    verdict: Verdict


@dataclass(frozen=True)
class Agreement:
    """The comparison."""

    rows: tuple[Row, ...]
    completions: tuple[Completion, ...]

    @property
    def verdict(self) -> Verdict:
        """FAIL if anything fails, else UNPROVED if anything is, else PASS."""
        found = {row.verdict for row in self.rows} | {one.verdict for one in self.completions}
        if Verdict.FAIL in found:
            return Verdict.FAIL
        return Verdict.UNPROVED if Verdict.UNPROVED in found or not self.rows else Verdict.PASS


def compare(
    simulated: Observation,
    live: Observation,
    repeat: Observation,
    nudged: Observation,
    *,
    warmup_s: float = 0.0,
    seed: int = 0,
) -> Agreement:
    """Compare two live runs with two simulations of the same arrivals.

    Requests that all four completed are compared; those planned before ``warmup_s`` are left out.
    Quantiles for which there are too few requests are left out too.

    Args:
        nudged: the simulation with a network that is a little slower.
        seed: of the bootstrap, which draws requests (the same in both runs of a ratio).

    Raises:
        BenchmarkError: the arrivals differ.
    """
    check_same_arrivals(simulated, live)
    check_same_arrivals(simulated, repeat)
    check_same_arrivals(simulated, nudged)
    rows: list[Row] = []
    completions: list[Completion] = []
    for workload in dict.fromkeys(simulated.workloads.tolist()):
        counted = (simulated.workloads == workload) & (simulated.at_s >= warmup_s)
        if not counted.any():
            continue
        completions.append(_completion(workload, counted, simulated, live, repeat))
        whole = counted & simulated.done & live.done & repeat.done & nudged.done
        for metric in METRICS:
            columns = [run.metrics[metric][whole] for run in (simulated, live, repeat, nudged)]
            known = np.all(np.isfinite(columns), axis=0)
            rows += _rows(workload, metric, [column[known] for column in columns], seed)
    return Agreement(tuple(rows), tuple(completions))


def _completion(
    workload: str,
    counted: Array,
    simulated: Observation,
    live: Observation,
    repeat: Observation,
) -> Completion:
    of_simulated, of_live, of_repeat = (
        float(run.done[counted].mean()) for run in (simulated, live, repeat)
    )
    allowed = DONE_TOLERANCE + abs(of_repeat - of_live)
    verdict = Verdict.PASS if abs(of_live - of_simulated) <= allowed else Verdict.FAIL
    return Completion(workload, int(counted.sum()), of_simulated, of_live, of_repeat, verdict)


def _rows(workload: str, metric: str, columns: list[Array], seed: int) -> Iterator[Row]:
    n = len(columns[0])
    quantiles = [q for q in TOLERANCES if n and (q == 0.5 or n >= samples_needed(q))]
    if not quantiles:
        return
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    drawn = [np.quantile(column[draws], quantiles, axis=1) for column in columns]
    for place, q in enumerate(quantiles):
        values = [float(np.quantile(column, q)) for column in columns]
        ratio = _ratio(values[1] / values[0], drawn[1][place] / drawn[0][place])
        again = _ratio(values[2] / values[1], drawn[2][place] / drawn[1][place])
        moved = _ratio(values[3] / values[0], drawn[3][place] / drawn[0][place])
        allowed = TOLERANCES[q] + abs(again.estimate - 1) + abs(moved.estimate - 1)
        yield Row(
            workload,
            metric,
            q,
            n,
            values[0],
            values[1],
            ratio,
            again,
            moved,
            allowed,
            _verdict(ratio, allowed),
        )


def _ratio(estimate: float, draws: Array) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Ratio(estimate, min(float(low), estimate), max(float(high), estimate))


def _verdict(ratio: Ratio, allowed: float) -> Verdict:
    if abs(ratio.estimate - 1) > allowed:
        return Verdict.FAIL
    within = ratio.low >= 1 - allowed and ratio.high <= 1 + allowed
    return Verdict.PASS if within else Verdict.UNPROVED
