"""Policy ``random`` draws engines as often as their weights say."""

from __future__ import annotations

from collections import Counter

from sage_prefect.control_plane.events import (
    Arrival,
    Dispatch,
    Done,
    EngineAdded,
    EngineSpec,
    RequestInfo,
)
from sage_prefect.control_plane.manager import ControlPlaneManager

DRAWS = 4000


def drawn(
    policy: str, weights: dict[str, float], *, change: dict[str, float] | None = None
) -> Counter[str]:
    manager = ControlPlaneManager(policy, seed=7)
    for name, weight in weights.items():
        manager.handle(EngineAdded(EngineSpec(name, ("m",), weight=weight)), 0.0)
    if change:
        manager.handle(Arrival(RequestInfo("first", "m")), 0.0)
        manager.handle(Done("first"), 0.0)
    for name, weight in (change or {}).items():
        manager.handle(EngineAdded(EngineSpec(name, ("m",), weight=weight)), 0.0)
    seen: Counter[str] = Counter()
    for number in range(DRAWS):
        (action,) = manager.handle(Arrival(RequestInfo(f"r{number}", "m")), 1.0)
        assert isinstance(action, Dispatch)
        seen[action.engine] += 1
        manager.handle(Done(f"r{number}"), 1.0)
    return seen


def test_shares_follow_the_weights() -> None:
    seen = drawn("random", {"a": 1.0, "b": 3.0, "c": 0.001})
    assert abs(seen["b"] / DRAWS - 0.75) < 0.03  # five standard deviations
    assert seen["c"] < 20


def test_a_new_weight_counts_at_once() -> None:
    seen = drawn("random", {"a": 1.0, "b": 1.0}, change={"a": 9.0})
    assert abs(seen["a"] / DRAWS - 0.9) < 0.03


def test_equal_weights_draw_as_no_weights_do() -> None:
    assert drawn("random", {"a": 5.0, "b": 5.0}) == drawn("random", {"a": 1.0, "b": 1.0})


def test_other_policies_do_not_heed_them() -> None:
    for policy in ("round_robin", "power_of_two", "least_outstanding"):
        seen = drawn(policy, {"a": 1.0, "b": 9.0})
        assert abs(seen["a"] / DRAWS - 0.5) < 0.05, policy


def test_a_weight_that_is_none_is_refused() -> None:
    manager = ControlPlaneManager("random")
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        manager.handle(EngineAdded(EngineSpec("a", ("m",), weight=weight)), 0.0)
    assert manager.ignored == 4
