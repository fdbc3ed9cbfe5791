"""An engine that says it has no room: another one at once, and a smaller window."""

from __future__ import annotations

from typing import Any

import pytest

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Dispatch,
    Done,
    EngineAdded,
    EngineSpec,
    Failed,
    FailureCause,
    Limits,
    Reject,
    RequestInfo,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy
from sage_prefect.control_plane.window import Window, WindowRules

HYBRID = sorted(n for n, p in POLICIES.items() if issubclass(p, HybridSchedulingPolicy))


def manager(policy: str, engines: int, slots: int = 1, retries: int = 0) -> ControlPlaneManager:
    made = ControlPlaneManager(policy, Limits(max_retries=retries))
    for number in range(engines):
        made.handle(EngineAdded(EngineSpec(f"e{number}", ("m",), slots)), 0.0)
    return made


def arrive(control: ControlPlaneManager, name: str) -> list[Action]:
    return control.handle(Arrival(RequestInfo(name, "m")), 1.0)


def engine_of(actions: list[Action]) -> str | None:
    return next((a.engine for a in actions if isinstance(a, Dispatch)), None)


def refuse(control: ControlPlaneManager, name: str, engine: str | None) -> list[Action]:
    cause = FailureCause.OVERLOADED
    return control.handle(Failed(name, engine or "", cause, retryable=True, message="full"), 1.0)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_first_refusal_costs_no_retry(policy: str) -> None:
    control = manager(policy, engines=4, retries=1)
    tried = [engine_of(arrive(control, "r"))]
    for _ in range(2):
        tried.append(engine_of(refuse(control, "r", tried[-1])))
    assert len(set(tried)) == 3, "another engine each time"
    assert None not in tried
    last = refuse(control, "r", tried[-1])
    assert engine_of(last) is None
    assert [a.status for a in last if isinstance(a, Reject)] == [502]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_request_that_all_engines_refuse_ends(policy: str) -> None:
    control = manager(policy, engines=2, retries=9)
    engine = engine_of(arrive(control, "r"))
    engine = engine_of(refuse(control, "r", engine))
    (reject,) = [a for a in refuse(control, "r", engine) if isinstance(a, Reject)]
    assert reject.engine == engine, "so that the driver passes the engine's own answer on"
    assert control.queued == control.running == 0


@pytest.mark.parametrize("policy", HYBRID)
def test_the_engine_s_window_shrinks(policy: str) -> None:
    control = manager(policy, engines=1, slots=20)
    for number in range(11):
        assert engine_of(arrive(control, f"r{number}")) == "e0"
    refuse(control, "r10", "e0")
    assert window(control).size == 9, "0.9 of the ten that are inside"
    assert engine_of(arrive(control, "late")) is None
    assert control.queued == 1
    assert engine_of(control.handle(Done("r0", 1, 1), 1.1)) is None, "nine are still inside"
    assert engine_of(control.handle(Done("r1", 1, 1), 1.2)) == "e0"


def test_a_window_grows_again() -> None:
    control = manager("hybrid", engines=1, slots=20)
    for number in range(20):
        arrive(control, f"r{number}")
    for number in range(20):
        refuse(control, f"r{number}", "e0")
    assert window(control).size == 1, "one request always finds out whether there is room again"
    now, inside = 2.0, 20
    for number in range(100):
        arrive(control, f"again{number}")
    for _ in range(30):
        now += 1.0
        for name in sorted(control.ledger.get("e0").running):  # type: ignore[union-attr]
            control.handle(Done(name, 1, 1), now)
        control.handle(Timer(), now)
        inside = max(inside, control.running)
    assert inside == 20
    assert window(control).size == 20


def test_a_window_never_grows_by_a_refusal() -> None:
    window = Window(8, WindowRules())
    window.refused(100)
    assert window.size == 8
    window.refused(0)
    assert window.size == 1


def window(control: ControlPlaneManager) -> Window:
    policy: Any = control.policy
    found: Window = policy._loads["e0"].window
    return found
