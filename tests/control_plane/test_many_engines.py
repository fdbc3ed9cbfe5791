"""Pools too large to look at every engine: a free engine is still always found."""

from __future__ import annotations

from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    Dispatch,
    Done,
    EngineAdded,
    EngineSpec,
    RequestInfo,
)
from sage_prefect.control_plane.manager import ControlPlaneManager


def test_the_last_free_engine_of_two_hundred_is_found() -> None:
    control = ControlPlaneManager("hybrid")
    for number in range(200):
        control.handle(EngineAdded(EngineSpec(f"e{number}", ("m",), 1)), 0.0)
    for number in range(200):
        info = RequestInfo(f"r{number}", "m", band=Band.INTERACTIVE)
        actions = control.handle(Arrival(info), 1.0)
        assert [a for a in actions if isinstance(a, Dispatch)], f"request {number} had to wait"
    control.handle(Arrival(RequestInfo("late", "m")), 1.0)
    assert control.queued == 1
    assert Dispatch("late", "e7", 1) in control.handle(Done(_inside(control, "e7"), 1, 1), 2.0)


def _inside(control: ControlPlaneManager, engine: str) -> str:
    entry = control.ledger.get(engine)
    assert entry is not None
    return next(iter(entry.running))
