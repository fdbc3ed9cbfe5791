"""Engines of one slot against queueing theory: exact recursions, and the mean wait of M/G/1."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sage_bench.simulation.cluster import NodeSpec
from sage_bench.simulation.controller import controller_factory
from sage_bench.simulation.gateway import Surroundings
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.request_facts import RequestFacts
from sage_bench.simulation.scenario import WorkloadSpec
from sage_bench.simulation.simulation import Simulation
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.workloads.arrivals import RateSchedule
from sage_bench.workloads.client_request import ClientRequest, Traffic
from sage_bench.workloads.sources import open_loop
from sage_prefect.control_plane.events import EngineSpec, Limits
from sage_prefect.control_plane.strategies import POLICIES

STEP_S = 0.01
Lengths = Callable[[np.random.Generator], int]
Waits = NDArray[np.float64]


def constant(rng: np.random.Generator) -> int:
    return 200


def two_lengths(rng: np.random.Generator) -> int:
    """A tenth of the requests is ten times as long: squared coefficient of variation 2.0."""
    return 1000 if rng.random() < 0.1 else 100


def simulated(
    policy: str, servers: int, load: float, lengths: Lengths, count: int, seed: int = 7
) -> tuple[Waits, Waits, Waits]:
    """(arrival, wait, service) of each request, in order of arrival; seconds."""
    rng = np.random.default_rng(seed)
    traffic = Traffic("t", "m")
    mean_s = STEP_S * float(np.mean([lengths(np.random.default_rng(i)) for i in range(2000)]))
    rate = load / mean_s
    until = count / rate

    def make(at: float) -> ClientRequest:
        return ClientRequest(at, traffic, "a", 1, lengths(rng))

    engine = LlmEngineSpec(StepProfile(STEP_S, 0, 0, 0, 10**6), max_num_seqs=1)
    workload = WorkloadSpec.model_validate(
        {"name": "t", "model": "m", "arrival": {"process": "poisson", "rate": 1}}
    )
    simulation = Simulation(
        [NodeSpec(EngineSpec(f"e-{i}", ("m",), 1), engine) for i in range(servers)],
        [open_loop(make, RateSchedule.constant(rate), 1.0, rng, until_s=until)],
        controller_factory(policy, Limits(10**6, queue_timeout_s=1e6)),
        Surroundings(network_s=0.0, until_s=until, drain_s=1e5),
        RequestFacts({"t": workload}, rng),
    )
    records = simulation.run()
    order = np.argsort(records.column("at"), kind="stable")
    at, queued = records.column("at")[order], records.column("queued_s")[order]
    return at, queued, records.column("e2e_s")[order] - queued


def recursion(at: Waits, service: Waits, servers: int) -> Waits:
    """Waits of a first-come queue with ``servers`` servers (Kiefer and Wolfowitz 1955)."""
    free_at = [0.0] * servers
    waits = np.empty(len(at))
    for number, (arrived, seconds) in enumerate(zip(at, service, strict=True)):
        begins = max(arrived, heapq.heappop(free_at))
        waits[number] = begins - arrived
        heapq.heappush(free_at, begins + seconds)
    return waits


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("servers", "load"), [(1, 0.8), (3, 2.6)])
def test_waits_are_those_of_a_first_come_queue(policy: str, servers: int, load: float) -> None:
    """One class, equal engines, nothing promised: no policy may be better or worse than that."""
    at, queued, service = simulated(policy, servers, load, two_lengths, 600)
    assert len(at) > 500
    assert set(np.round(service / STEP_S)) == {100, 1000}
    assert queued == pytest.approx(recursion(at, service, servers), abs=1e-6)


@pytest.mark.parametrize("lengths", [constant, two_lengths])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(lengths: Lengths) -> None:
    """M/G/1: the wait is lambda E[S^2] / (2 (1 - rho)); measured with the drawn S and lambda."""
    at, queued, service = simulated("fifo", 1, 0.6, lengths, 12_000)
    rate, squares = len(at) / at[-1], float((service**2).mean())
    rho = rate * float(service.mean())
    assert queued.mean() == pytest.approx(rate * squares / (2 * (1 - rho)), rel=0.1)
