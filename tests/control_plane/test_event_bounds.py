"""Numbers that cannot be true change no decision and raise nothing, under every policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect.control_plane.event_bounds import MAX_TOKENS, bounded_done, bounded_request
from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    Dispatch,
    Done,
    EngineAdded,
    EngineGauges,
    EngineProfile,
    EngineReport,
    EngineSpec,
    EngineState,
    FirstToken,
    Progress,
    Reject,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

NAN: Any = math.nan
HUGE = 10**400
PROFILE = EngineProfile(c0=0.03, a=6.5e-5, b=2.1e-4, g=1.6e-7)

COUNT = st.sampled_from([0, 1, 500, -1, -(10**9), HUGE, -HUGE, NAN])
WISH = st.sampled_from([None, 0.0, -1.0, 1.0, 1e-12, 1e300, math.inf, -math.inf, NAN])


def manager(policy: str) -> ControlPlaneManager:
    made = ControlPlaneManager(policy)
    for name in ("e1", "e2"):
        made.handle(EngineAdded(EngineSpec(name, ("m",), 1, profile=PROFILE, kv_tokens=9000)), 0.0)
    return made


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_every_request_ends_once(policy: str, data: st.DataObject) -> None:
    control = manager(policy)
    ended: list[str] = []
    running: list[str] = []
    now = 1.0

    def feed(event: Any) -> None:
        for action in control.handle(event, now):
            if isinstance(action, Dispatch):
                running.append(action.request_id)
            elif isinstance(action, Reject):
                ended.append(action.request_id)

    names = [f"r{i}" for i in range(6)]
    for at, name in enumerate(names):
        feed(
            Arrival(
                RequestInfo(
                    name,
                    "m",
                    tenant=f"t{at % 2}",
                    band=Band(at % 4),
                    stream=at % 3 > 0,
                    prompt_tokens=data.draw(COUNT),
                    output_estimate=data.draw(st.none() | COUNT),
                    deadline=data.draw(WISH),
                    ttft_slo_s=data.draw(WISH),
                    tpot_slo_s=data.draw(WISH),
                )
            )
        )
        gauge = data.draw(WISH)
        feed(EngineReport("e1", EngineState.READY, gauges=EngineGauges(gauge, gauge, gauge, gauge)))
    for _ in range(3 * len(names)):
        now += 50.0
        feed(Timer())
        if running:
            name = running.pop(0)
            feed(FirstToken(name))
            feed(Progress(name, data.draw(COUNT)))
            ended.append(name)
            feed(Done(name, data.draw(COUNT), data.draw(COUNT), data.draw(COUNT)))
    assert sorted(ended) == names
    assert control.queued == control.running == 0


def test_what_can_be_true_is_not_copied() -> None:
    info, done = RequestInfo("r", "m", prompt_tokens=5, ttft_slo_s=1.0), Done("r", 1, 2, 0)
    assert bounded_request(info) is info
    assert bounded_done(done) is done


def test_what_cannot_be_true_counts_as_not_said() -> None:
    info = bounded_request(
        RequestInfo(
            "r",
            "m",
            prompt_tokens=HUGE,
            output_estimate=-3,
            deadline=NAN,
            ttft_slo_s=0.0,
            tpot_slo_s=NAN,
        )
    )
    assert info.prompt_tokens == MAX_TOKENS
    assert info.output_estimate == 0
    assert info.deadline is info.ttft_slo_s is info.tpot_slo_s is None
    assert bounded_done(Done("r", -1, HUGE, NAN)) == Done("r")


@pytest.mark.parametrize("number", [NAN, math.inf, -1.0])
def test_an_engine_that_cannot_be_measured_is_not_taken(number: float) -> None:
    control = ControlPlaneManager("hybrid")
    for spec in (
        EngineSpec("e", ("m",), profile=EngineProfile(c0=number)),
        EngineSpec("e", ("m",), price=number),
    ):
        assert control.handle(EngineAdded(spec), 0.0) == []
    assert control.ignored == 2
    assert control.ledger.get("e") is None


@pytest.mark.parametrize(
    "spec",
    [
        BandSpec(Band.STANDARD, ttft_slo_s=0.0),
        BandSpec(Band.STANDARD, tpot_slo_s=-1.0),
        BandSpec(Band.STANDARD, ttft_slo_s=NAN),
        BandSpec(Band.STANDARD, min_share=1.5),
        BandSpec(Band.STANDARD, age_limit_s=NAN),
    ],
)
def test_a_band_that_promises_nonsense_changes_nothing(spec: BandSpec) -> None:
    control = manager("hybrid")
    control.handle(BandsChanged((spec,)), 0.0)
    assert control.ignored == 1
    control.handle(Arrival(RequestInfo("r", "m")), 1.0)
    control.handle(FirstToken("r"), 1.0)
    assert control.handle(Done("r", 1, 1), 1.0) == []


@pytest.mark.parametrize("weight", [NAN, math.inf, 0.0, -1.0])
def test_a_tenant_without_a_weight_is_not_taken(weight: float) -> None:
    control = ControlPlaneManager("hybrid")
    assert control.handle(TenantsChanged((TenantSpec("t", weight),)), 0.0) == []
    assert control.ignored == 1
