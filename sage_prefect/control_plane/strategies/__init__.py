"""The scheduling policies by name. A new one is a file here and a line in the table."""

from __future__ import annotations

from random import Random

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.ledger import Ledger
from sage_prefect.control_plane.strategies.base import SchedulingPolicy
from sage_prefect.control_plane.strategies.fifo import FifoPolicy
from sage_prefect.control_plane.strategies.hybrid_parts import (
    AdaptivePolicy,
    CostPolicy,
    FairPolicy,
    PriorityPolicy,
    SloAwarePolicy,
)
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy
from sage_prefect.control_plane.strategies.power_of_two import PowerOfTwoPolicy, RandomPolicy
from sage_prefect.control_plane.strategies.prefix_aware import PrefixAwarePolicy
from sage_prefect.control_plane.strategies.round_robin import RoundRobinPolicy
from sage_prefect.control_plane.strategies.session import SessionPolicy

_ALL: tuple[type[SchedulingPolicy], ...] = (
    HybridSchedulingPolicy,
    AdaptivePolicy,
    CostPolicy,
    FairPolicy,
    FifoPolicy,
    LeastOutstandingPolicy,
    PowerOfTwoPolicy,
    PrefixAwarePolicy,
    PriorityPolicy,
    RandomPolicy,
    RoundRobinPolicy,
    SessionPolicy,
    SloAwarePolicy,
)
POLICIES: dict[str, type[SchedulingPolicy]] = {policy.name: policy for policy in _ALL}


def check_policy(name: str) -> str:
    """``name``, if it is a known policy.

    Raises:
        UnknownNameError: it is not; lists the known ones.
    """
    if name not in POLICIES:
        raise UnknownNameError("scheduling policy", name, POLICIES)
    return name


def make_policy(name: str, ledger: Ledger, rng: Random) -> SchedulingPolicy:
    """A policy of this name over ``ledger``; ``rng`` is its only source of chance.

    Raises:
        UnknownNameError: the name is not known; lists the known ones.
    """
    return POLICIES[check_policy(name)](ledger, rng)


__all__ = ["POLICIES", "SchedulingPolicy", "check_policy", "make_policy"]
