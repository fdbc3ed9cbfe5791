"""What does one uncontended request cost in the live manager: classify, decide, settle?

``python -m sage_bench.experiments.decision_cost`` prints microseconds of CPU time per request by
policy and number of engines, the median and the range of several rounds. Each engine is kept at a
few requests; every request is classified from a parsed body, arrives, sends its first token and
ends, so that nothing waits. The garbage collector is off, as in a gateway that froze its start.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Sequence

from sage_prefect.common.compiled import compiled_state
from sage_prefect.control_plane.events import (
    Arrival,
    Band,
    Dispatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineSpec,
    FirstToken,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.request_classifier import Entitlement, RequestClassifier

# Llama-2 70B on eight H100, from Splitwise's measured table (docs/decisions/0006).
_PROFILE = EngineProfile(c0=0.0299, a=6.5e-5, b=2.09e-4, g=1.62e-7, source="splitwise h100 tp8")
_INSIDE = 2
_TENANTS = 50


def cost_us(policy: str, engines: int, requests: int) -> float:
    """CPU microseconds per request.

    Raises:
        RuntimeError: a request had to wait: that is not the uncontended cost.
    """
    manager, classifier = ControlPlaneManager(policy), RequestClassifier()
    for number in range(engines):
        spec = EngineSpec(f"e{number}", ("m",), 64, profile=_PROFILE, kv_tokens=400_000)
        manager.handle(EngineAdded(spec), 0.0)
    rights = [Entitlement(f"t{i}", Band.INTERACTIVE) for i in range(_TENANTS)]
    body = {"model": "m", "stream": True, "max_tokens": 200, "messages": []}
    inside: deque[str] = deque()
    # The pace at which requests of about a second keep the engines that full.
    step, now = 1.0 / (_INSIDE * engines), 1.0
    began = 0.0
    warm = _INSIDE * engines + requests // 10
    for number in range(warm + requests):
        if number == warm:
            began = time.process_time()
        now += step
        name = f"r{number}"
        info = classifier.classify(
            request_id=name,
            kind="chat",
            body=body,
            body_bytes=3000,
            now=now,
            entitlement=rights[number % _TENANTS],
        )
        actions = manager.handle(Arrival(info), now)
        if not (actions and isinstance(actions[0], Dispatch)):
            raise RuntimeError(f"request {name!r} of policy {policy!r} had to wait.")
        inside.append(name)
        if len(inside) > _INSIDE * engines:
            oldest = inside.popleft()
            manager.handle(FirstToken(oldest), now)
            manager.handle(Done(oldest, 750, 200, 0), now)
    return (time.process_time() - began) / requests * 1e6


def table(
    policies: Sequence[str] = ("fifo", "least_outstanding", "hybrid"),
    engine_counts: Sequence[int] = (1, 8, 64, 1000),
    requests: int = 5000,
    rounds: int = 5,
) -> list[tuple[str, int, float, float, float]]:
    """Rows of (policy, engines, median, least, most) microseconds."""
    rows = []
    gc.collect()
    gc.disable()
    try:
        for policy in policies:
            for engines in engine_counts:
                costs = [cost_us(policy, engines, requests) for _ in range(rounds)]
                rows.append((policy, engines, statistics.median(costs), min(costs), max(costs)))
    finally:
        gc.enable()
    return rows


if __name__ == "__main__":
    state = compiled_state("sage_prefect.control_plane")
    print(f"control plane: {'compiled' if state.active else f'interpreted ({state.reason})'}")
    print(f"{'policy':20}{'engines':>8}{'us/request':>12}{'range':>16}")
    for policy, engines, median, least, most in table():
        print(f"{policy:20}{engines:8d}{median:12.1f}{least:10.1f}-{most:.1f}")
