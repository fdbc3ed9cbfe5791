"""A tenant at its limit waits; nobody else waits for it."""

from __future__ import annotations

import pytest

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineSpec,
    Event,
    Reject,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

CAPPING = sorted(n for n, p in POLICIES.items() if issubclass(p, HybridSchedulingPolicy))


def manager(policy: str, *tenants: TenantSpec, slots: int = 4) -> ControlPlaneManager:
    made = ControlPlaneManager(policy)
    made.handle(EngineAdded(EngineSpec("e", ("m",), slots)), 0.0)
    made.handle(TenantsChanged(tenants), 0.0)
    return made


def arrive(control: ControlPlaneManager, name: str, tenant: str, band: int = 1) -> list[Action]:
    return control.handle(Arrival(RequestInfo(name, "m", tenant=tenant, band=Band(band))), 1.0)


def sent(control: ControlPlaneManager, event: Event) -> list[str]:
    return [a.request_id for a in control.handle(event, 2.0) if isinstance(a, Dispatch)]


@pytest.mark.parametrize("policy", CAPPING)
def test_one_at_its_limit_of_running_requests_is_passed_over(policy: str) -> None:
    control = manager(policy, TenantSpec("heavy", max_running=1))
    for number in range(3):
        arrive(control, f"h{number}", "heavy")
    assert [a for a in arrive(control, "light", "light") if isinstance(a, Dispatch)]
    assert control.queued == 2
    assert sent(control, Done("h0", 1, 1)) == ["h1"], "its turn comes when one of its own ends"
    assert sent(control, Cancel("h1")) == ["h2"]
    assert control.queued == 0


@pytest.mark.parametrize("policy", CAPPING)
def test_a_limit_that_is_lifted_frees_what_waits(policy: str) -> None:
    control = manager(policy, TenantSpec("heavy", max_running=1))
    for number in range(3):
        arrive(control, f"h{number}", "heavy")
    assert sent(control, TenantsChanged(())) == ["h1", "h2"]


@pytest.mark.parametrize("policy", CAPPING)
def test_a_passed_over_request_may_be_cancelled_and_come_again(policy: str) -> None:
    control = manager(policy, TenantSpec("heavy", max_running=1))
    arrive(control, "h0", "heavy")
    arrive(control, "h1", "heavy")
    control.handle(Cancel("h1"), 1.5)
    assert control.queued == 0
    arrive(control, "h2", "heavy")
    assert sent(control, Done("h0", 1, 1)) == ["h2"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_limit_of_queued_requests_counts_all_bands(policy: str) -> None:
    control = manager(policy, TenantSpec("t", max_queued=2), slots=1)
    refused = [
        action
        for number in range(9)
        for action in arrive(control, f"r{number}", "t", number % 4)
        if isinstance(action, Reject)
    ]
    assert control.queued == 2
    assert len(refused) == 6
    assert {(r.status, r.code) for r in refused} == {(429, "queue_full")}
    assert all(r.retry_after is not None and "tenant 't'" in r.message for r in refused)
    assert not [a for a in arrive(control, "o", "other") if isinstance(a, Reject)]
