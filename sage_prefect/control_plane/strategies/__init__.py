"""The scheduling policies by name. A new one is a file here and a line in the table."""

from __future__ import annotations

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.ledger import Ledger
from sage_prefect.control_plane.strategies.base import SchedulingPolicy
from sage_prefect.control_plane.strategies.fifo import FifoPolicy
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy

POLICIES: dict[str, type[SchedulingPolicy]] = {
    policy.name: policy for policy in (FifoPolicy, LeastOutstandingPolicy)
}


def check_policy(name: str) -> str:
    """``name``, if it is a known policy.

    Raises:
        UnknownNameError: it is not; lists the known ones.
    """
    if name not in POLICIES:
        raise UnknownNameError("scheduling policy", name, POLICIES)
    return name


def make_policy(name: str, ledger: Ledger) -> SchedulingPolicy:
    """A policy of this name over ``ledger``.

    Raises:
        UnknownNameError: the name is not known; lists the known ones.
    """
    return POLICIES[check_policy(name)](ledger)


__all__ = ["POLICIES", "SchedulingPolicy", "check_policy", "make_policy"]
