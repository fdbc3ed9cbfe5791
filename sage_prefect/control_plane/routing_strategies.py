"""LiteLLM's ``routing_strategy`` names: which of our policies serves each, and why.

They choose an engine for a request that leaves at once. Ours also hold a request until an engine
has room; the engine is chosen then, by what comes nearest to what the name promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.strategies import POLICIES


@dataclass(frozen=True, slots=True)
class RoutingStrategy:
    """What serves one of LiteLLM's strategies here."""

    policy: str
    """Name of our policy."""
    reason: str
    """What the two have in common, and what is not taken over."""


_BY_USAGE = (
    "spreads tokens, not requests: it sends where the first token is predicted soonest, from the "
    "tokens inside each engine now instead of those of the minute; an engine's tpm and rpm are no "
    "limits"
)

ROUTING_STRATEGIES: Mapping[str, RoutingStrategy] = {
    "simple-shuffle": RoutingStrategy(
        "random",
        "picks by chance among engines with room, by their weights (rpm or tpm where no weight is "
        "given)",
    ),
    "least-busy": RoutingStrategy(
        "least_outstanding", "the same rule: the engine with the fewest requests inside"
    ),
    "usage-based-routing": RoutingStrategy("fair", _BY_USAGE),
    "usage-based-routing-v2": RoutingStrategy("fair", _BY_USAGE),
    "latency-based-routing": RoutingStrategy(
        "hybrid",
        "sends where the first token is predicted soonest, by a model of each engine that is "
        "learned from its answers, instead of by an average of past latencies",
    ),
    "cost-based-routing": RoutingStrategy(
        "cost", "the cheapest engine by its configured price, as long as the promises hold"
    ),
}
"""By LiteLLM's name."""


def resolve(name: str) -> str:
    """Our policy of this name, or the one that serves LiteLLM's strategy of this name.

    Raises:
        UnknownNameError: it is neither; lists the known ones.
    """
    if name in POLICIES:
        return name
    strategy = ROUTING_STRATEGIES.get(name)
    if strategy is None:
        raise UnknownNameError("routing strategy", name, (*POLICIES, *ROUTING_STRATEGIES))
    return strategy.policy
