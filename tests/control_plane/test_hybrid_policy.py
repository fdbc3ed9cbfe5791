"""The hybrid policy under the manager: its books beside the ledger's."""

from __future__ import annotations

from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    Dispatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineSpec,
    FirstToken,
    Reject,
    RequestInfo,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

H100_70B = EngineProfile(c0=0.0299, a=65e-6, b=0.209e-3, g=1.62e-7, source="test")


def manager_of(*engines: EngineSpec) -> ControlPlaneManager:
    manager = ControlPlaneManager("hybrid")
    for spec in engines:
        manager.handle(EngineAdded(spec), 0.0)
    return manager


def chat(name: str, **fields: object) -> Arrival:
    info = {"prompt_tokens": 500, "band": Band.INTERACTIVE, "stream": True, **fields}
    return Arrival(RequestInfo(name, "m", **info))  # type: ignore[arg-type]


def batch(name: str) -> Arrival:
    return chat(name, band=Band.BATCH, stream=False, prompt_tokens=2500)


def loads(manager: ControlPlaneManager) -> dict[str, int]:
    policy = manager.policy
    assert isinstance(policy, HybridSchedulingPolicy)
    return {name: load.running for name, load in policy._loads.items()}


def test_a_request_that_is_too_late_leaves_no_trace_in_its_engine() -> None:
    manager = manager_of(EngineSpec("e", ("m",), 1))
    manager.handle(chat("first"), 0.0)
    assert manager.handle(chat("late", deadline=1.0), 0.0)[-1] != Dispatch("late", "e")
    # Its timer comes late: the engine is free first.
    actions = manager.handle(Done("first"), 2.0)
    assert [type(action) for action in actions] == [Reject]
    assert loads(manager) == {"e": 0}
    assert manager.handle(chat("next"), 3.0) == [Dispatch("next", "e")]


def test_batch_work_enters_only_while_promises_hold() -> None:
    manager = manager_of(EngineSpec("e", ("m",), 256, profile=H100_70B))
    manager.handle(chat("c", ttft_slo_s=1.0, tpot_slo_s=0.1), 0.0)
    manager.handle(FirstToken("c"), 0.1)
    entered = 0
    for number in range(200):
        actions = manager.handle(batch(f"b{number}"), 0.2 + number * 0.5)
        entered += sum(isinstance(action, Dispatch) for action in actions)
    # c0 + (b + g * 2628) * n stays under 85 ms up to n = 86; without a gate all would enter.
    assert 20 < entered < 87
    assert manager.queued == 200 - entered


def test_without_latency_requests_batch_work_has_the_engine() -> None:
    manager = manager_of(EngineSpec("e", ("m",), 64, profile=H100_70B))
    dispatched = [manager.handle(batch(f"b{number}"), number * 0.5) for number in range(60)]
    assert all(any(isinstance(a, Dispatch) for a in actions) for actions in dispatched)


def test_an_unasked_promise_never_holds_a_request() -> None:
    slow = EngineProfile(c0=0.5, a=0.01, b=0.1, g=0.0, source="a slow CPU")
    manager = manager_of(EngineSpec("e", ("m",), 4, profile=slow))
    for number in range(4):
        actions = manager.handle(chat(f"c{number}"), 0.0)
        assert Dispatch(f"c{number}", "e") in actions
        manager.handle(FirstToken(f"c{number}"), 0.0)


def test_light_tenants_are_not_turned_away_for_a_greedy_one() -> None:
    manager = manager_of(EngineSpec("e", ("m",), 1, profile=H100_70B))
    promise = {"ttft_slo_s": 2.0, "tpot_slo_s": 1.0}
    manager.handle(chat("running", tenant="greedy", **promise), 0.0)
    refused = 0
    for number in range(200):
        arrival = chat(f"g{number}", tenant="greedy", **promise)
        actions = manager.handle(arrival, 1.0 + number * 0.01)
        refused += sum(isinstance(action, Reject) for action in actions)
    assert refused > 50
    actions = manager.handle(chat("light", tenant="light", **promise), 3.1)
    assert not any(isinstance(action, Reject) for action in actions)


def test_explain_names_the_scores_a_choice_was_made_from() -> None:
    manager = manager_of(EngineSpec("a", ("m",), 8), EngineSpec("b", ("m",), 8))
    manager.handle(chat("c"), 0.0)
    story = manager.explain("c")
    assert story is not None
    dispatched = story["decisions"][-1]
    assert {name for name, _ in dispatched["scores"]} == {"a", "b"}
