"""Routing baselines by name: what others do, for comparison only; no part of the product."""

from __future__ import annotations

from sage_bench.simulation.baselines.base import RoutingBaseline
from sage_bench.simulation.baselines.load import (
    LeastOutstanding,
    LeastOutstandingBySpeed,
    RoundRobin,
    SeparatePools,
    StaticSplit,
)
from sage_bench.simulation.baselines.prefix import CacheAware, DynamoCost, LMetric

BASELINES: dict[str, type[RoutingBaseline]] = {
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
    )
}
__all__ = ["BASELINES", "RoutingBaseline"]
