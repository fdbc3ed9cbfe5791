"""What the hybrid policy promises, as claims over simulations: each is judged on every seed.

A claim compares a policy's metric, or its ratio to another policy's (perhaps of another scenario),
with a bound. It passes when the end of the 95 % interval that speaks against it meets the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sage_bench.claims import Verdict
from sage_bench.simulation.experiment_run import PolicyResult
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.stats import Interval, interval, paired_ratio

Results = Mapping[str, Mapping[str, PolicyResult]]
"""Scenario -> policy -> its best variant's runs."""


@dataclass(frozen=True)
class Measure:
    """A metric of a policy in a scenario."""

    scenario: str
    policy: str
    metric: str


@dataclass(frozen=True)
class TargetClaim:
    """One promise.

    Args:
        text: in words.
        measure: what is looked at.
        bound: with ``at_least`` its lower limit, else its upper.
        over: what ``measure`` is divided by.
        scale: constant factor on the value (a theory's reciprocal).
    """

    text: str
    measure: Measure
    bound: float
    at_least: bool = True
    over: Measure | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Target:
    """A numbered target: scenarios, claims on them, metrics to show for every policy.

    ``reshape`` makes the scenarios that have no file of their own from the one named before the
    slash: ``overload/22.5``.
    """

    number: str
    title: str
    scenarios: tuple[str, ...]
    claims: tuple[TargetClaim, ...]
    shown: tuple[str, ...]
    reshape: Mapping[str, Callable[[ScenarioSpec], ScenarioSpec]] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetOutcome:
    """A judged claim; ``value`` is None where some seed had nothing to measure."""

    claim: TargetClaim
    value: Interval | None
    verdict: Verdict


def judge(claim: TargetClaim, results: Results) -> TargetOutcome:
    """Judge a claim on the runs of all seeds.

    Raises:
        BenchmarkError: a metric is not known.
    """
    values = [claim.scale * v for v in _values(claim.measure, results)]
    if claim.over is None:
        if not all(math.isfinite(v) for v in values):
            return TargetOutcome(claim, None, Verdict.UNPROVED)
        found = interval(values)
    else:
        over = _values(claim.over, results)
        if not all(math.isfinite(v) for v in [*values, *over]) or any(v <= 0 for v in over):
            return TargetOutcome(claim, None, Verdict.UNPROVED)
        found = paired_ratio(values, over)
    if claim.at_least:
        met, missed = found.low >= claim.bound, found.high < claim.bound
    else:
        met, missed = found.high <= claim.bound, found.low > claim.bound
    verdict = Verdict.PASS if met else Verdict.FAIL if missed else Verdict.UNPROVED
    return TargetOutcome(claim, found, verdict)


def _values(measure: Measure, results: Results) -> list[float]:
    return results[measure.scenario][measure.policy].values(measure.metric)


# -- reshaping ------------------------------------------------------------------------------


def with_rates(
    factor: float, workload: str | None = None
) -> Callable[[ScenarioSpec], ScenarioSpec]:
    """The arrival rates of a workload, or of all, times ``factor``."""
    return lambda spec: _mapped(spec, factor, 1, workload)


def with_engines(count: int) -> Callable[[ScenarioSpec], ScenarioSpec]:
    """``count`` times as many engines and arrivals."""
    return lambda spec: _mapped(spec, float(count), count)


def scaled_to(engines: int, of: int) -> Callable[[ScenarioSpec], ScenarioSpec]:
    """A scenario of ``of`` engines per group with ``engines`` instead, at the same load each;
    only the tuned values that make sense at that size stay."""

    def reshape(spec: ScenarioSpec) -> ScenarioSpec:
        smaller = _mapped(spec, engines / of, 1)
        groups = [g.model_copy(update={"count": g.count * engines // of}) for g in spec.engines]
        policies = [
            p.model_copy(
                update={
                    "tune": {
                        name: list(range(1, engines)) if name == "embedding" else values
                        for name, values in p.tune.items()
                    }
                }
            )
            for p in spec.policies
        ]
        return smaller.model_copy(update={"engines": groups, "policies": policies})

    return reshape


def _mapped(spec: ScenarioSpec, factor: float, count: int, only: str | None = None) -> ScenarioSpec:
    workloads = []
    for workload in spec.workloads:
        if only not in (None, workload.name):
            workloads.append(workload)
            continue
        arrival: Any = workload.arrival
        rates = {
            name: getattr(arrival, name) * factor
            for name in ("rate", "low", "high")
            if hasattr(arrival, name)
        }
        workloads.append(workload.model_copy(update={"arrival": arrival.model_copy(update=rates)}))
    groups = [g.model_copy(update={"count": g.count * count}) for g in spec.engines]
    return spec.model_copy(update={"workloads": workloads, "engines": groups})
