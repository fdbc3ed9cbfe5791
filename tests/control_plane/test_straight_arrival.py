"""An arrival that goes straight to its engine is decided and booked as one through the queue."""

from __future__ import annotations

import random

import pytest

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineSpec,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.base import SchedulingPolicy

PROFILE = EngineProfile(c0=0.03, a=6.5e-5, b=2e-4, g=1.6e-7, source="test")
ENGINES, EVENTS = 4, 1500


def through_the_queue(
    policy: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> ControlPlaneManager:
    manager = ControlPlaneManager(policy, seed=seed)

    def arrive(request: object, now: float) -> None:
        SchedulingPolicy.arrive(manager.policy, request, now)  # type: ignore[arg-type]

    monkeypatch.setattr(manager.policy, "arrive", arrive, raising=False)
    return manager


class Traffic:
    """Random events that follow from what the managers answered so far; load swings."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1.0
        self.asked = 0
        self.inside: dict[str, str] = {}
        self.queued: dict[str, None] = {}
        self.timer_at: float | None = None

    def next(self) -> Event:
        rng = self.rng
        self.now += rng.expovariate(20.0)
        if self.timer_at is not None and self.timer_at <= self.now:
            self.timer_at = None
            return Timer()
        chance, some = rng.random(), list(self.inside)
        most = 2 * ENGINES if int(self.now / 5.0) % 2 else 7 * ENGINES
        if not some or (chance < 0.5 and len(some) + len(self.queued) < most):
            return Arrival(self._request())
        if chance < 0.65:
            return FirstToken(rng.choice(some))
        if chance < 0.75:
            return Progress(rng.choice(some), rng.randrange(1, 20))
        if chance < 0.95:
            return Done(rng.choice(some), 700, rng.choice((5, 200)), rng.choice((None, 0, 256)))
        if chance < 0.97:
            name = rng.choice(some)
            return Failed(name, self.inside[name], FailureCause.OVERLOADED, True, "")
        if chance < 0.98:
            limits = (TenantSpec("t0", 2.0, max_running=2), TenantSpec("t1", 0.5))
            return TenantsChanged(limits if rng.random() < 0.5 else ())
        return Cancel(rng.choice([*some, *self.queued]))

    def _request(self) -> RequestInfo:
        rng = self.rng
        self.asked += 1
        first = 1000 * rng.randrange(4)
        return RequestInfo(
            f"r{self.asked}",
            rng.choice(("m", "m", "n")),
            tenant=f"t{rng.randrange(5)}",
            band=Band(rng.randrange(4)),
            stream=rng.random() < 0.8,
            prompt_tokens=rng.randrange(1, 4000),
            session=rng.choice((None, "a", "b")),
            ttft_slo_s=rng.choice((None, 2.0)),
            tpot_slo_s=rng.choice((None, 0.1)),
            output_estimate=rng.choice((None, 300)),
            prefix=tuple(range(first, first + rng.randrange(12))),
        )

    def take(self, event: Event, actions: list[Action]) -> None:
        if isinstance(event, (Done, Failed, Cancel)):
            self.inside.pop(event.request_id, None)
            self.queued.pop(event.request_id, None)
        if isinstance(event, Failed):
            self.queued[event.request_id] = None
        if isinstance(event, Arrival):
            self.queued[event.request.request_id] = None
        for action in actions:
            if isinstance(action, SetTimer):
                self.timer_at = action.at
            elif isinstance(action, (Dispatch, Reject)):
                self.queued.pop(action.request_id, None)
            if isinstance(action, Dispatch):
                self.inside[action.request_id] = action.engine


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", [1, 2])
def test_same_as_through_the_queue(policy: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    managers = [
        ControlPlaneManager(policy, seed=seed),
        through_the_queue(policy, seed, monkeypatch),
    ]
    for number in range(ENGINES):
        models = ("m", "n") if number % 2 else ("m",)
        spec = EngineSpec(f"e{number}", models, 5, profile=PROFILE, kv_tokens=50_000)
        for manager in managers:
            assert manager.handle(EngineAdded(spec), 0.0) == []
    traffic, straight, waited = Traffic(seed), 0, 0
    for _ in range(EVENTS):
        event = traffic.next()
        actions, others = (manager.handle(event, traffic.now) for manager in managers)
        assert actions == others
        if isinstance(event, Arrival):
            name = event.request.request_id
            straight += any(isinstance(action, Dispatch) for action in actions)
            waited += not actions or not isinstance(actions[0], Dispatch)
            assert managers[0].explain(name) == managers[1].explain(name)
        traffic.take(event, actions)
    assert managers[0].ignored == managers[1].ignored
    assert straight > 50
    assert waited > 10
