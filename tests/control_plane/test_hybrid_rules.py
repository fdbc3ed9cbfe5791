"""Rules of the hybrid policy that show only through the manager: learning, ageing, admission."""

from __future__ import annotations

import math

import pytest

from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.events import (
    Action,
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
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

PROFILE = EngineProfile(c0=0.03, a=65e-6, b=0.2e-3, g=1.6e-7, source="test")
AGES = {band: spec.age_limit_s for band, spec in DEFAULT_BANDS.items()}


def manager_of(*windows: int, profile: EngineProfile | None = PROFILE) -> ControlPlaneManager:
    manager = ControlPlaneManager("hybrid", Limits(queue_timeout_s=1e6))
    for number, window in enumerate(windows):
        manager.handle(EngineAdded(EngineSpec(f"e{number}", ("m",), window, profile=profile)), 0.0)
    return manager


def policy_of(manager: ControlPlaneManager) -> HybridSchedulingPolicy:
    assert isinstance(manager.policy, HybridSchedulingPolicy)
    return manager.policy


def model_of(manager: ControlPlaneManager, engine: str = "e0") -> EngineModel:
    return policy_of(manager)._loads[engine].model


def send(
    manager: ControlPlaneManager, name: str, now: float = 0.0, **fields: object
) -> list[Action]:
    info = {"prompt_tokens": 1000, "band": Band.INTERACTIVE, "stream": True, **fields}
    return manager.handle(Arrival(RequestInfo(name, "m", **info)), now)  # type: ignore[arg-type]


def dispatched(actions: list[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


def next_out(manager: ControlPlaneManager, running: str, now: float) -> str:
    """The running request ends; which one goes next."""
    [name] = dispatched(manager.handle(Done(running), now))
    return name


# -- what the model learns from ---------------------------------------------------------------


def learned(model: EngineModel) -> tuple[float, ...]:
    return (model.c0, model.a, model.b, model.g, model.kt, model.samples)


def stream(manager: ControlPlaneManager, name: str, now: float, token_s: float = 0.2) -> None:
    send(manager, name, now)
    manager.handle(FirstToken(name), now + 1.0)
    for chunk in range(20):
        manager.handle(Progress(name, 1), now + 1.0 + (chunk + 1) * token_s)


def test_first_tokens_and_steps_are_learned_from() -> None:
    manager = manager_of(8)
    before = learned(model_of(manager))
    stream(manager, "r", 0.0)
    after = learned(model_of(manager))
    assert after[0] > before[0]
    assert after[4] != before[4]
    assert after[5] == 20


def answer(manager: ControlPlaneManager, name: str, now: float, tokens: int) -> None:
    """A whole answer of an engine that takes 0.1 ms per prompt token and 50 ms per token."""
    send(manager, name, now, stream=False)
    manager.handle(Done(name, 1000, tokens), now + 0.1 + 0.05 * tokens)


def test_without_streams_whole_answers_show_the_pace() -> None:
    manager = manager_of(8, profile=None)
    model = model_of(manager)
    for number in range(16):
        assert not model.known
        answer(manager, f"short{number}", 100.0 * number, 31)  # tells more of its prompt
        answer(manager, f"r{number}", 100.0 * number + 50, 200)
    assert model.known
    assert model.samples == 16
    assert model.iteration_s(1, 1100) == pytest.approx(0.05, rel=0.05)


def test_whole_answers_say_nothing_beside_a_profile_or_a_stream() -> None:
    given = manager_of(8)
    answer(given, "r", 0.0, 200)
    assert model_of(given).samples == 0
    streamed = manager_of(8, profile=None)
    stream(streamed, "s", 0.0)
    answer(streamed, "r", 50.0, 200)
    assert model_of(streamed).samples == 20


@pytest.mark.parametrize("state", [EngineState.SUSPECT, EngineState.DOWN])
def test_an_engine_that_is_not_well_teaches_nothing(state: EngineState) -> None:
    """What comes out of it after a stall says how long the stall was, not how fast it is."""
    manager = manager_of(8, 8)
    send(manager, "first")
    send(manager, "second")
    for number in range(2):
        manager.handle(EngineReport(f"e{number}", state), 1.0)
    before = [learned(model_of(manager, f"e{number}")) for number in range(2)]
    for name in ("first", "second"):
        manager.handle(FirstToken(name), 30.0)
        manager.handle(Progress(name, 1), 40.0)
        manager.handle(Progress(name, 1), 41.0)
    assert before == [learned(model_of(manager, f"e{number}")) for number in range(2)]


def test_prompts_on_their_way_disturb_and_teach_nothing_of_steps() -> None:
    manager = manager_of(8)
    send(manager, "r", 0.0)
    manager.handle(FirstToken("r"), 1.0)
    send(manager, "prompt", 1.1)
    for chunk in range(20):
        manager.handle(Progress("r", 1), 2.0 + chunk)
    assert model_of(manager).samples == 0


def test_neighbours_that_show_the_same_count_once() -> None:
    manager = manager_of(8)
    for name in "abcd":
        send(manager, name, 0.0)
        manager.handle(FirstToken(name), 1.0)
    for second in range(2, 12):
        for name in "abcd":
            manager.handle(Progress(name, 1), float(second))
    assert model_of(manager).samples == 10


def test_an_engine_without_a_profile_begins_with_what_its_like_have_learned() -> None:
    manager = manager_of(64, profile=None)
    for number in range(3):
        stream(manager, f"r{number}", number * 10.0)
        manager.handle(Done(f"r{number}"), number * 10.0 + 9.0)
    old = model_of(manager)
    assert old.known
    for name, device, model in (("like", "cpu", "m"), ("gpu", "cuda", "m"), ("n", "cpu", "n")):
        spec = EngineSpec(name, (model,), 64, device=device)
        manager.handle(EngineAdded(spec), 50.0)
    assert model_of(manager, "like").c0 == old.c0
    assert model_of(manager, "like").known
    assert not model_of(manager, "gpu").known
    assert not model_of(manager, "n").known


# -- ageing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("band", [Band.INTERACTIVE, Band.STANDARD])
def test_a_long_wait_moves_a_request_up_by_one_band(band: Band) -> None:
    limit = AGES[band]
    assert limit is not None
    manager = manager_of(1)
    send(manager, "running", 0.0, stream=False)
    send(manager, "old", 0.0, band=band, tenant="old")
    send(manager, "young", limit - 2.0, band=Band(band - 1), tenant="young")
    queued = {r.request_id: r for r in manager.policy.pending()}
    manager.handle(Timer(), limit - 1.0)
    assert queued["old"].band is band
    manager.handle(Timer(), limit)
    assert queued["old"].band is Band(band - 1)
    assert queued["young"].band is Band(band - 1)
    assert len(manager.policy) == 2


def test_ageing_goes_on_through_changes_of_the_policy() -> None:
    """The time at which it moves up is the same as before: it has to be noted anew all the same."""
    limit = AGES[Band.STANDARD]
    assert limit is not None
    manager = manager_of(1)
    send(manager, "running", 0.0, stream=False)
    send(manager, "old", 0.0, band=Band.STANDARD)
    for policy in ("hybrid", "fifo", "hybrid"):
        manager.handle(PolicyChanged(policy), 1.0)
    [old] = manager.policy.pending()
    manager.handle(Timer(), limit)
    assert old.band is Band.INTERACTIVE


def test_who_moves_up_is_charged_there_and_pays_for_nothing_else() -> None:
    manager = manager_of(1)
    manager.handle(BandsChanged((BandSpec(Band.STANDARD, age_limit_s=5.0),)), 0.0)
    send(manager, "running", 0.0, tenant="other")
    send(manager, "old", 0.0, band=Band.STANDARD, tenant="old")
    manager.handle(Timer(), 6.0)
    accounts = policy_of(manager)._accounts
    assert not accounts[Band.STANDARD].backlogged
    assert set(accounts[Band.INTERACTIVE].backlogged) == {"old"}
    assert next_out(manager, "running", 7.0) == "old"
    assert accounts[Band.INTERACTIVE].of("old").virtual > 0.0
    assert accounts[Band.STANDARD].of("old").virtual == 0.0


def test_who_has_waited_for_its_age_goes_before_the_tenants_younger_requests() -> None:
    """In its new band it is as urgent as one that belongs there, not as its old band says."""
    manager = manager_of(1)
    manager.handle(BandsChanged((BandSpec(Band.BATCH, age_limit_s=20.0),)), 0.0)
    send(manager, "running", 0.0)
    send(manager, "old", 0.0, band=Band.BATCH)
    manager.handle(Timer(), 21.0)
    for number in range(5):
        send(manager, f"young{number}", 40.0 + number, band=Band.STANDARD)
    assert next_out(manager, "running", 46.0) == "old"


def test_no_one_rises_above_their_limit_twice_at_once() -> None:
    manager = manager_of(1)
    spec = BandSpec(Band.BATCH, age_limit_s=5.0), BandSpec(Band.STANDARD, age_limit_s=50.0)
    manager.handle(BandsChanged(spec), 0.0)
    send(manager, "running", 0.0)
    send(manager, "old", 0.0, band=Band.BATCH)
    [old] = manager.policy.pending()
    manager.handle(Timer(), 6.0)
    assert old.band is Band.STANDARD
    manager.handle(Timer(), 55.0)
    assert old.band is Band.STANDARD
    manager.handle(Timer(), 57.0)
    assert old.band is Band.INTERACTIVE
    manager.handle(Timer(), 1e4)
    assert old.band is Band.INTERACTIVE


@pytest.mark.parametrize("failed_at", [0.0, 2.0])
@pytest.mark.parametrize("band", [Band.INTERACTIVE, Band.STANDARD])
def test_a_second_attempt_waits_for_its_own_age(band: Band, failed_at: float) -> None:
    """What was noted of its first wait says nothing of its second: no band is skipped or left."""
    limit = AGES[band]
    assert limit is not None
    manager = manager_of(1, 1)
    send(manager, "r", 0.0, band=band)
    [at] = [entry.name for entry in manager.ledger if entry.running]
    send(manager, "other", 0.0, band=band)
    send(manager, "waits", 0.0, band=band)
    assert next_out(manager, "r", failed_at) == "waits"
    send(manager, "urgent", failed_at, band=Band.CRITICAL)
    failed = Failed("waits", at, FailureCause.CONNECT, retryable=True)
    assert dispatched(manager.handle(failed, failed_at)) == ["urgent"]
    [request] = manager.policy.pending()
    manager.handle(Timer(), failed_at + limit - 0.5)
    assert request.band is band
    manager.handle(Timer(), failed_at + limit)
    assert request.band is Band(band - 1)
    manager.handle(Timer(), 10 * limit)
    assert request.band is Band(band - 1)


# -- admission --------------------------------------------------------------------------------


def refused(weight: float, others: int = 0) -> int:
    """Of 300 requests that a tenant sends in three seconds to one engine that is taken."""
    manager = manager_of(1)
    manager.handle(TenantsChanged((TenantSpec("t", weight),)), 0.0)
    send(manager, "running", 0.0, tenant="x")
    count = 0
    for number in range(300):
        now = 1.0 + number * 0.01
        for other in range(others):
            send(manager, f"o{other}-{number}", now, tenant=f"o{other}")
        actions = send(manager, f"r{number}", now, tenant="t", ttft_slo_s=4.0, tpot_slo_s=1.0)
        rejections = [a for a in actions if isinstance(a, Reject) and a.request_id == f"r{number}"]
        assert all(1 <= (rejection.retry_after or 0) <= 60 for rejection in rejections)
        count += len(rejections)
    return count


def test_who_is_alone_waits_for_all_it_has_queued_whatever_its_weight() -> None:
    counts = [refused(weight) for weight in (0.1, 1.0, 10.0)]
    assert counts[0] == counts[1] == counts[2] > 100


def test_beside_others_more_weight_means_less_wait() -> None:
    counts = [refused(weight, others=2) for weight in (0.2, 1.0, 5.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


def test_without_a_promise_nothing_is_rejected_early() -> None:
    manager = manager_of(1)
    actions = [
        action
        for number in range(500)
        for action in send(manager, f"r{number}", number * 0.01, output_estimate=2000)
    ]
    assert not any(isinstance(action, Reject) for action in actions)


def test_a_burst_that_drains_is_not_rejected() -> None:
    """The queue must stand for a while; all of these come at one instant."""
    manager = manager_of(1)
    actions = [
        action
        for number in range(100)
        for action in send(manager, f"r{number}", 1.0, ttft_slo_s=1.0, tpot_slo_s=1.0)
    ]
    assert not any(isinstance(action, Reject) for action in actions)


# -- charges ----------------------------------------------------------------------------------


def virtual(manager: ControlPlaneManager, tenant: str = "default") -> float:
    return policy_of(manager)._accounts[Band.INTERACTIVE].of(tenant).virtual


def test_a_request_is_charged_over_its_tenants_weight_and_corrected() -> None:
    charges = []
    for weight in (1.0, 4.0):
        manager = manager_of(8)
        manager.handle(TenantsChanged((TenantSpec("default", weight),)), 0.0)
        send(manager, "r", 0.0, output_estimate=1000)
        expected = virtual(manager)
        manager.handle(Done("r", prompt_tokens=1000, output_tokens=10), 1.0)
        charges.append((expected, virtual(manager)))
    (before, after), (light_before, light_after) = charges
    assert 0.0 < after < 0.2 * before
    assert light_before == pytest.approx(before / 4)
    assert light_after == pytest.approx(after / 4)


def test_an_attempt_that_brought_nothing_is_not_paid() -> None:
    manager = manager_of(8, 8)
    send(manager, "r", 0.0)
    paid = virtual(manager)
    engine = manager.policy.ledger  # where it is
    [at] = [entry.name for entry in engine if entry.running]
    failed = Failed("r", at, FailureCause.CONNECT, retryable=True, message="gone")
    manager.handle(failed, 1.0)
    assert virtual(manager) == pytest.approx(paid)  # once, for the second attempt
    [at] = [entry.name for entry in engine if entry.running]
    manager.handle(Failed("r", at, FailureCause.CONNECT, retryable=False, message="gone"), 2.0)
    assert virtual(manager) == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(virtual(manager))
