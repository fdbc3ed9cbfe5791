from __future__ import annotations

import pytest

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.routing_strategies import ROUTING_STRATEGIES, resolve
from sage_prefect.control_plane.strategies import POLICIES

LITELLM = [
    ("simple-shuffle", "random"),
    ("least-busy", "least_outstanding"),
    ("usage-based-routing", "fair"),
    ("usage-based-routing-v2", "fair"),
    ("latency-based-routing", "hybrid"),
    ("cost-based-routing", "cost"),
]


@pytest.mark.parametrize(("theirs", "ours"), LITELLM)
def test_litellms_names(theirs: str, ours: str) -> None:
    assert resolve(theirs) == ours
    assert ROUTING_STRATEGIES[theirs].reason


def test_the_table_holds_these_and_policies_that_exist() -> None:
    assert set(ROUTING_STRATEGIES) == {theirs for theirs, _ in LITELLM}
    assert {strategy.policy for strategy in ROUTING_STRATEGIES.values()} <= set(POLICIES)
    assert not set(ROUTING_STRATEGIES) & set(POLICIES)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_our_own_names_stay(name: str) -> None:
    assert resolve(name) == name


def test_an_unknown_name_lists_both_kinds() -> None:
    with pytest.raises(UnknownNameError, match="'least-bussy'") as caught:
        resolve("least-bussy")
    for name in (*POLICIES, *ROUTING_STRATEGIES):
        assert name in str(caught.value)
    assert "Did you mean 'least-busy'" in str(caught.value)
