"""The cost of an event does not grow with the depth of the queue; counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import pytest

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    FirstToken,
    Limits,
    RequestInfo,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

LIMITS = Limits(max_queued_requests=1 << 30, queue_timeout_s=1e6)


def most_calls(policy: str, depth: int) -> dict[str, int]:
    """The most Python calls that one event of each kind makes with so many requests queued."""
    control = ControlPlaneManager(policy, LIMITS)
    rng = Random(0)
    for number in range(4):
        control.handle(EngineAdded(EngineSpec(f"e{number}", ("m",), 2)), 0.0)
    running: list[str] = []
    most: dict[str, int] = {}

    def feed(event: Event, now: float) -> None:
        actions, calls = counted(lambda: control.handle(event, now))
        kind = type(event).__name__
        most[kind] = max(most.get(kind, 0), calls)
        running.extend(a.request_id for a in actions if isinstance(a, Dispatch))

    def arrival(number: int) -> Arrival:
        tenant, band = f"t{rng.randrange(50)}", Band(rng.randrange(4))
        return Arrival(RequestInfo(f"r{number}", "m", tenant=tenant, band=band, stream=True))

    for number in range(depth):
        for action in control.handle(arrival(number), number * 1e-4):
            running.extend([action.request_id] if isinstance(action, Dispatch) else [])
    now = depth * 1e-4
    for number in range(60):
        now += 0.01
        feed(arrival(depth + number), now)
        feed(Cancel(f"r{number * depth // 60}"), now)
        running = [n for n in running if control.explain(n)["state"] == "running"]  # type: ignore[index]
        feed(FirstToken(running[0]), now)
        feed(Done(running.pop(0), 50, 10), now)
        feed(EngineReport("e1", EngineState.SUSPECT if number % 2 else EngineState.READY), now)
        feed(Timer(), now)
    return most


def counted(what: Callable[[], list[Action]]) -> tuple[list[Action], int]:
    """The result of a call and how many Python calls were made in it."""
    calls = 0

    def on_event(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        result = what()
    finally:
        sys.setprofile(None)
    return result, calls


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_event_walks_over_all_that_waits(policy: str) -> None:
    shallow, deep = most_calls(policy, 500), most_calls(policy, 8000)
    # Sixteen times as deep: a walk would make thousands of calls, a heap makes four more steps.
    assert {kind: calls for kind, calls in deep.items() if calls > 3 * shallow[kind] + 100} == {}
