"""Refuse a plan that the cluster can never run, before anything is submitted.

Dask keeps a task with an impossible wish for ever, silently (research: prefect.md A0, 8).
"""

from __future__ import annotations

from collections.abc import Mapping

from sage_prefect.common.errors import ClusterError, UnschedulableError
from sage_prefect.kernel.plan import Plan
from sage_prefect.kernel.resources import Resources

Offers = Mapping[str, Mapping[str, float]]


def check_schedulable(plan: Plan, offers: Offers) -> None:
    """Check that for each stage some worker could run it.

    Args:
        offers: worker name -> its resources.

    Raises:
        ClusterError: there are no workers.
        UnschedulableError: names the stage's operators, their wish and what workers offer.
    """
    for stage in plan.stages:
        names = " and ".join(repr(operator.name) for operator in stage.operators)
        check_wish(f"operator {names}", stage.resources, offers)


def check_wish(who: str, wish: Resources, offers: Offers) -> None:
    """Check one wish against ``offers``; raises as :func:`check_schedulable`."""
    if not offers:
        raise ClusterError(
            "the Dask cluster has no workers.",
            hint="See `sage status` and `sage logs dask`; `sage up` starts them.",
        )
    if not any(wish.fits(offer) for offer in offers.values()):
        offered = "; ".join(f"{name}: {_listed(offer)}" for name, offer in sorted(offers.items()))
        raise UnschedulableError(
            f"{who} wishes {_listed(wish.counters())}, which no worker of the cluster offers.",
            hint=f"Workers offer: {offered}. Change resources= or cluster.yaml.",
        )


def _listed(counters: Mapping[str, float]) -> str:
    shown = [
        name if name.startswith("label:") else f"{name}={amount:g}"
        for name, amount in sorted(counters.items())
    ]
    return ", ".join(shown) or "nothing in particular"
