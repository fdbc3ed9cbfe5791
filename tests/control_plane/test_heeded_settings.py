"""What a policy is said not to use makes no difference to it; what it uses makes one."""

from __future__ import annotations

import heapq
import itertools
from random import Random

import pytest

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
    EngineSpec,
    Event,
    FirstToken,
    Progress,
    RequestInfo,
    SetTimer,
    Timer,
)
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

HYBRID = sorted(n for n, p in POLICIES.items() if issubclass(p, HybridSchedulingPolicy))
PROFILE = EngineProfile(c0=0.02, a=1e-4, b=2e-3, g=2e-7)
CASES = [
    (policy, band, what)
    for policy in HYBRID
    for band in Band
    for what in ("ttft_slo_s", "tpot_slo_s")
]


def decisions(policy: str, promise: BandSpec | None, seed: int) -> list[tuple[float, list[Action]]]:
    """All decisions on a crowd of requests at two engines whose answers take a while."""
    control = ControlPlaneManager(policy)
    rng = Random(seed)
    taken: list[tuple[float, list[Action]]] = []
    timer: list[float] = []
    pending: list[tuple[float, int, Event]] = []
    numbers = itertools.count()

    def happens(when: float, event: Event) -> None:
        heapq.heappush(pending, (when, next(numbers), event))

    def feed(event: Event, now: float) -> None:
        actions = control.handle(event, now)
        taken.append((now, actions))
        for action in actions:
            if isinstance(action, SetTimer):
                timer[:] = [action.at]
            elif isinstance(action, Dispatch):
                # The same answer wherever and whenever it starts: only decisions may differ.
                own = Random(f"{seed} {action.request_id}")
                first, each = own.uniform(0.05, 1.5), own.uniform(0.02, 0.2)
                name = action.request_id
                for part, event in enumerate((FirstToken(name), Progress(name, 20))):
                    happens(now + first + part * 20 * each, event)
                happens(now + first + 40 * each, Done(name, 200, 40))

    for number in range(2):
        spec = EngineSpec(f"e{number}", ("m",), 12, profile=PROFILE, kv_tokens=30_000)
        feed(EngineAdded(spec), 0.0)
    if promise is not None:
        feed(BandsChanged((promise,)), 0.0)
    at = 0.0
    for number in range(120):
        at += rng.expovariate(12.0)
        info = RequestInfo(
            f"r{number}",
            "m",
            tenant=f"t{rng.randrange(3)}",
            band=Band(rng.randrange(4)),
            stream=True,
            prompt_tokens=rng.randrange(50, 2000),
            output_estimate=40,
            deadline=at + 20 if rng.random() < 0.3 else None,
        )
        happens(at, Arrival(info))
    while pending:
        due = pending[0][0]
        if timer and timer[0] < due:
            feed(Timer(), timer.pop())
            continue
        feed(heapq.heappop(pending)[2], due)
    return [(now, actions) for now, actions in taken if actions]


@pytest.mark.parametrize(("policy", "band", "what"), CASES)
def test_promises(policy: str, band: Band, what: str) -> None:
    parts = POLICIES[policy].parameters  # type: ignore[attr-defined]
    heeds = parts.heeds_ttft(band) if what == "ttft_slo_s" else parts.heeds_tpot(band)
    default = DEFAULT_BANDS[band]
    tight = 0.3 if what == "ttft_slo_s" else 0.04
    promise = BandSpec(
        band,
        min_share=default.min_share,
        age_limit_s=default.age_limit_s,
        reject_share=default.reject_share,
        **{what: tight},
    )
    seeds = range(3) if heeds else range(1)
    differs = any(
        decisions(policy, promise, seed) != decisions(policy, None, seed) for seed in seeds
    )
    assert differs == heeds
