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
    PolicyChanged,
    Reject,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES


def manager(policy: str, *tenants: TenantSpec, slots: int = 4) -> ControlPlaneManager:
    made = ControlPlaneManager(policy)
    made.handle(EngineAdded(EngineSpec("e", ("m",), slots)), 0.0)
    made.handle(TenantsChanged(tenants), 0.0)
    return made


def arrive(control: ControlPlaneManager, name: str, tenant: str, band: int = 1) -> list[Action]:
    return control.handle(Arrival(RequestInfo(name, "m", tenant=tenant, band=Band(band))), 1.0)


def sent(control: ControlPlaneManager, event: Event) -> list[str]:
    return [a.request_id for a in control.handle(event, 2.0) if isinstance(a, Dispatch)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_one_at_its_limit_of_running_requests_is_passed_over(policy: str) -> None:
    control = manager(policy, TenantSpec("heavy", max_running=1))
    for number in range(3):
        arrive(control, f"h{number}", "heavy")
    assert [a for a in arrive(control, "light", "light") if isinstance(a, Dispatch)]
    assert control.queued == 2
    assert sent(control, Done("h0", 1, 1)) == ["h1"], "its turn comes when one of its own ends"
    assert sent(control, Cancel("h1")) == ["h2"]
    assert control.queued == 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_limit_that_is_lifted_frees_what_waits(policy: str) -> None:
    control = manager(policy, TenantSpec("heavy", max_running=1))
    for number in range(3):
        arrive(control, f"h{number}", "heavy")
    assert sent(control, TenantsChanged(())) == ["h1", "h2"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
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


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_limit_of_zero_runs_nothing_and_holds_up_nobody(policy: str) -> None:
    control = manager(policy, TenantSpec("shut", max_running=0), slots=1)
    arrive(control, "s", "shut")
    assert [a for a in arrive(control, "o", "open") if isinstance(a, Dispatch)]
    arrive(control, "o2", "open")
    assert sent(control, Done("o", 1, 1)) == ["o2"]
    assert control.queued == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_lowered_limit_lets_what_runs_finish(policy: str) -> None:
    control = manager(policy, slots=3)
    for number in range(5):
        arrive(control, f"r{number}", "t")
    assert control.running == 3
    assert sent(control, TenantsChanged((TenantSpec("t", max_running=1),))) == []
    assert sent(control, Done("r0", 1, 1)) == []
    assert sent(control, Done("r1", 1, 1)) == []
    assert sent(control, Done("r2", 1, 1)) == ["r3"]
    assert sent(control, Done("r3", 1, 1)) == ["r4"]


@pytest.mark.parametrize("after", sorted(POLICIES))
@pytest.mark.parametrize("before", ["fifo", "hybrid"])
def test_a_limit_outlives_a_change_of_policy(before: str, after: str) -> None:
    control = manager(before, TenantSpec("t", max_running=1))
    for number in range(4):
        arrive(control, f"r{number}", "t")
    assert sent(control, PolicyChanged(after)) == []
    assert control.queued == 3
    for number in range(3):
        assert sent(control, Done(f"r{number}", 1, 1)) == [f"r{number + 1}"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_waits_in_line_may_go_while_others_are_held(policy: str) -> None:
    """The one in line is cancelled: the next of its tenant steps in, also if none runs."""
    control = manager(policy, TenantSpec("t", max_running=1), slots=1)
    arrive(control, "o", "other")
    for number in range(3):
        arrive(control, f"r{number}", "t")
    control.handle(Cancel("r0"), 1.5)
    assert sent(control, Done("o", 1, 1)) == ["r1"]
    assert sent(control, Done("r1", 1, 1)) == ["r2"]
