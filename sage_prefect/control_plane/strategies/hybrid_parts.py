"""The simpler policies that are ``hybrid`` with parts switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

_PLAIN = HybridParameters(
    bands=False,
    fair=False,
    by_deadline=False,
    gate=False,
    hold=False,
    partition=False,
    admission=False,
    prefix=False,
)


class PriorityPolicy(HybridSchedulingPolicy):
    """``priority``: bands in order, each first come, first served; no gate, no promises."""

    name = "priority"
    parameters: ClassVar[HybridParameters] = replace(_PLAIN, bands=True)


class SloAwarePolicy(HybridSchedulingPolicy):
    """``slo_aware``: bands, earliest deadline first, held and gated by promises, rejected early."""

    name = "slo_aware"
    parameters: ClassVar[HybridParameters] = replace(
        _PLAIN, bands=True, by_deadline=True, gate=True, hold=True, admission=True
    )


class FairPolicy(HybridSchedulingPolicy):
    """``fair``: tenants by virtual time in engine-seconds, nothing else."""

    name = "fair"
    parameters: ClassVar[HybridParameters] = replace(_PLAIN, fair=True)


class CostPolicy(HybridSchedulingPolicy):
    """``cost``: as ``slo_aware``, into the cheapest engine that keeps the promise."""

    name = "cost"
    parameters: ClassVar[HybridParameters] = replace(SloAwarePolicy.parameters, price=True)


class AdaptivePolicy(HybridSchedulingPolicy):
    """``adaptive``: windows that follow what is measured and early rejection; no bands."""

    name = "adaptive"
    parameters: ClassVar[HybridParameters] = replace(_PLAIN, hold=True, admission=True)
