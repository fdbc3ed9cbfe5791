"""No gate starves batch work: a ready engine takes a request of it every ten seconds."""

from __future__ import annotations

import pytest

from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    Dispatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineReport,
    EngineSpec,
    EngineState,
    FirstToken,
    RequestInfo,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies.engine_choice import BATCH_EVERY_S

TPOT_S = 0.1
# An iteration takes nearly all of the promise: the gate (0.97 of it at most) never opens.
TIGHT = EngineProfile(c0=0.098, a=1e-6, b=1e-6, g=1e-9)


def batch_dispatches(
    profile: EngineProfile | None,
    *,
    pace_s: float,
    seconds: int = 60,
    state: EngineState = EngineState.READY,
) -> list[float]:
    """When batch work entered an engine that always has a latency request inside.

    Args:
        profile: of the engine; None: nothing is known of it.
        pace_s: its time per token, as seen from outside.
    """
    control = ControlPlaneManager("hybrid")
    control.handle(EngineAdded(EngineSpec("e", ("m",), 8, profile=profile)), 0.0)
    control.handle(EngineReport("e", state), 0.0)
    control.handle(BandsChanged((BandSpec(Band.INTERACTIVE, 1.0, TPOT_S),)), 0.0)
    entered: list[float] = []
    inside: list[str] = []

    def feed(event: object, now: float) -> None:
        for action in control.handle(event, now):  # type: ignore[arg-type]
            if isinstance(action, Dispatch) and action.request_id.startswith("batch"):
                entered.append(now)
                inside.append(action.request_id)

    tokens = int(2.0 / pace_s)
    for second in range(seconds):
        now = float(second)
        request = RequestInfo(f"r{second}", "m", band=Band.INTERACTIVE, stream=True)
        feed(Arrival(request), now)
        feed(FirstToken(f"r{second}"), now + 0.1)
        if second == 0:
            for number in range(9):
                feed(Arrival(RequestInfo(f"batch{number}", "m", band=Band.BATCH)), now + 0.2)
        if second >= 2:
            feed(Done(f"r{second - 2}", 10, tokens), now + 0.1)
        while inside:
            feed(Done(inside.pop(), 10, 10), now + 0.5)
        feed(Timer(), now + 0.9)
    return entered


@pytest.mark.parametrize("profile", [TIGHT, None])
def test_batch_work_enters_beside_latency_work(profile: EngineProfile | None) -> None:
    entered = batch_dispatches(profile, pace_s=0.09)
    assert len(entered) == 5
    gaps = [after - before for before, after in zip([0.0, *entered], entered, strict=False)]
    assert all(BATCH_EVERY_S - 1 <= gap <= BATCH_EVERY_S + 1.5 for gap in gaps), entered


def test_not_while_latency_requests_miss_their_promise() -> None:
    assert batch_dispatches(TIGHT, pace_s=0.13) == []


def test_not_into_an_engine_that_warms_up() -> None:
    assert batch_dispatches(TIGHT, pace_s=0.09, state=EngineState.WARMING) == []
