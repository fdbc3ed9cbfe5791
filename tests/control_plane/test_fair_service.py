"""What two backlogged tenants get of the engines' time: the bound of fair queueing.

Over any stretch in which both have something queued, what they get, each over its weight, differs
by no more than one request of each (start-time fair queueing, Goyal et al. 1996; the bound of VTC,
arXiv 2401.00588, for unequal weights), whoever else comes and goes.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.engine_seconds import predicted_s
from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    Dispatch,
    Done,
    EngineAdded,
    EngineProfile,
    EngineSpec,
    RequestInfo,
    TenantsChanged,
    TenantSpec,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.queues import LAG_S
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

PROFILE = EngineProfile(c0=0.03, a=1e-4, b=2e-4, g=2e-7, source="test")
WEIGHT = st.sampled_from([0.05, 0.3, 1.0, 4.0])
SIZE = st.tuples(st.integers(50, 4000), st.integers(1, 1000))
"""Prompt and answer in tokens."""


def cost_s(info: RequestInfo) -> float:
    return predicted_s(EngineModel(PROFILE), ScheduledRequest(info, 0, 0.0))


class Bench:
    """One engine that serves ``slots`` requests at a time, and who got how much of it."""

    def __init__(self, weights: dict[str, float], slots: int = 1) -> None:
        self.manager = ControlPlaneManager("fair")
        specs = tuple(TenantSpec(name, weight) for name, weight in weights.items())
        self.manager.handle(EngineAdded(EngineSpec("e", ("m",), slots, profile=PROFILE)), 0.0)
        self.manager.handle(TenantsChanged(specs), 0.0)
        self.weights = weights
        self.service = dict.fromkeys(weights, 0.0)
        """Engine-seconds dispatched, over the tenant's weight."""
        self.order: list[str] = []
        self.running: list[RequestInfo] = []
        self.infos: dict[str, RequestInfo] = {}

    def send(self, tenant: str, size: tuple[int, int]) -> None:
        info = RequestInfo(
            f"{tenant}{len(self.infos)}", "m", tenant=tenant, band=Band.STANDARD,
            prompt_tokens=size[0], output_estimate=size[1],
        )  # fmt: skip
        self.infos[info.request_id] = info
        self._take(self.manager.handle(Arrival(info), 0.0))

    def finish(self, share: float = 1.0) -> None:
        """The oldest running request ends, with an answer of ``share`` of what was expected."""
        info = self.running.pop(0)
        output = max(1, int(share * (info.output_estimate or 0)))
        done = Done(info.request_id, prompt_tokens=info.prompt_tokens, output_tokens=output)
        self._take(self.manager.handle(done, 0.0))

    def queued(self, tenant: str) -> bool:
        return any(r.info.tenant == tenant for r in self.manager.policy.pending())

    def _take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                info = self.infos[action.request_id]
                self.running.append(info)
                self.order.append(info.tenant)
                self.service[info.tenant] += cost_s(info) / self.weights[info.tenant]


@settings(max_examples=60)
@given(
    weights=st.tuples(WEIGHT, WEIGHT, WEIGHT),
    sizes=st.tuples(SIZE, SIZE, SIZE),
    late=st.integers(0, 10),
    others=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_two_backlogged_tenants_differ_by_one_request_of_each(
    weights: tuple[float, float, float],
    sizes: tuple[tuple[int, int], ...],
    late: int,
    others: list[bool],
) -> None:
    """``b`` joins after ``late`` requests; ``c`` comes with one request now and then."""
    bench = Bench(dict(zip("abc", weights, strict=True)))
    bound = sum(
        cost_s(RequestInfo("r", "m", prompt_tokens=prompt, output_estimate=output)) / weight
        for weight, (prompt, output) in zip(weights[:2], sizes[:2], strict=True)
    )
    for _ in range(50):
        bench.send("a", sizes[0])
    gaps = []
    for turn, other in enumerate(others):
        if turn == late:
            for _ in range(50):
                bench.send("b", sizes[1])
        if other:
            bench.send("c", sizes[2])
        if turn >= late:
            if not (bench.queued("a") and bench.queued("b")):
                break
            gaps.append(bench.service["a"] - bench.service["b"])
        bench.finish()
    assert max(gaps) - min(gaps) <= bound + 1e-9


@settings(max_examples=40)
@given(
    weights=st.tuples(WEIGHT, WEIGHT),
    shares=st.lists(st.sampled_from([0.1, 1.0, 3.0]), min_size=60, max_size=60),
)
def test_wrong_predictions_are_made_good(weights: tuple[float, float], shares: list[float]) -> None:
    """What is charged at dispatch is corrected at the end: only what is inside can be wrong."""
    slots, size = 4, (500, 500)
    bench = Bench(dict(zip("ab", weights, strict=True)), slots)
    served = {"a": 0.0, "b": 0.0}
    for _ in range(80):
        bench.send("a", size)
        bench.send("b", size)
    most = cost_s(RequestInfo("r", "m", prompt_tokens=500, output_estimate=1500))
    bound = (1 + slots) * most * sum(1 / weight for weight in weights)
    for share in shares:
        info = bench.running[0]
        actual = RequestInfo("r", "m", prompt_tokens=500, output_estimate=max(1, int(share * 500)))
        bench.finish(share)
        served[info.tenant] += cost_s(actual) / bench.weights[info.tenant]
        if not (bench.queued("a") and bench.queued("b")):
            break
        assert abs(served["a"] - served["b"]) <= bound


def test_a_tenant_of_little_weight_does_not_push_newcomers_back() -> None:
    """One request of a tenant of weight 0.01 costs it a hundred times as much virtual time."""
    bench = Bench({"light": 0.01, "a": 1.0, "b": 1.0})
    for _ in range(50):
        bench.send("a", (500, 100))
    bench.finish()
    bench.send("light", (500, 100))
    bench.finish()
    bench.finish()
    for _ in range(10):
        bench.send("b", (500, 100))
    while bench.queued("b"):
        bench.finish()
    lag = LAG_S / cost_s(bench.infos[next(iter(bench.infos))])
    assert bench.order.index("light") < 4
    assert bench.order.count("a") <= 4 + 10 + lag


def test_a_tenant_banks_no_credit_while_it_may_not_run_more() -> None:
    """For an hour its limit kept it at one of four slots; then the limit is lifted."""
    bench = Bench({"a": 1.0, "b": 1.0}, slots=4)
    capped = (TenantSpec("a", 1.0, max_running=1), TenantSpec("b", 1.0))
    bench.manager.handle(TenantsChanged(capped), 0.0)
    for _ in range(400):
        bench.send("a", (500, 200))
        bench.send("b", (500, 200))
    for _ in range(200):
        bench.finish()
    assert bench.order.count("a") < 0.3 * len(bench.order)
    bench.manager.handle(TenantsChanged((TenantSpec("a"), TenantSpec("b"))), 0.0)
    before = len(bench.order)
    for _ in range(100):
        bench.finish()
    lag = LAG_S / cost_s(bench.infos["a0"])
    assert bench.order[before:].count("b") >= 50 - lag / 2 - 4
