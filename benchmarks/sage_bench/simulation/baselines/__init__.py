"""Routing baselines by name: what others do, for comparison only; no part of the product."""

from __future__ import annotations

from sage_bench.simulation.baselines.base import Baseline, RoutingBaseline
from sage_bench.simulation.baselines.clairvoyant import Clairvoyant
from sage_bench.simulation.baselines.foresight import Future
from sage_bench.simulation.baselines.load import (
    LeastOutstanding,
    LeastOutstandingBySpeed,
    RoundRobin,
    SeparatePools,
    StaticSplit,
)
from sage_bench.simulation.baselines.prefix import CacheAware, DynamoCost, LMetric

BASELINES: dict[str, type[Baseline]] = {
    cls.name: cls
    for cls in (
        RoundRobin,
        LeastOutstanding,
        LeastOutstandingBySpeed,
        StaticSplit,
        SeparatePools,
        CacheAware,
        DynamoCost,
        LMetric,
        Clairvoyant,
    )
}
__all__ = ["BASELINES", "Baseline", "Future", "RoutingBaseline"]
