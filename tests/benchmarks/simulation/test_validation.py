"""The simulator against theory and against published points."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sage_bench.simulation.assembly import Variant, assemble
from sage_bench.simulation.cluster import NodeSpec
from sage_bench.simulation.controller import controller_factory
from sage_bench.simulation.experiment_run import run_one
from sage_bench.simulation.gateway import Surroundings
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.metrics import Figures
from sage_bench.simulation.request_facts import RequestFacts
from sage_bench.simulation.scenario import WorkloadSpec
from sage_bench.simulation.scenario_file import known_scenarios, parse_scenario, read_scenario
from sage_bench.simulation.simulation import Simulation
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.workloads.arrivals import RateSchedule
from sage_bench.workloads.client_request import ClientRequest, Traffic
from sage_bench.workloads.sources import open_loop
from sage_prefect.control_plane.events import EngineSpec, Limits
from sage_prefect.control_plane.manager import ControlPlaneManager


def erlang_c_wait(servers: int, load: float, service_s: float) -> float:
    """Mean wait in an M/M/c queue; ``load`` in Erlangs."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last) * service_s / (servers - load)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (4, 3.2), (8, 6.4)])
def test_engines_of_one_slot_are_an_m_m_c_queue(servers: int, load: float) -> None:
    waits = np.mean([mean_wait(servers, load, seed) for seed in range(5, 11)])
    assert waits == pytest.approx(erlang_c_wait(servers, load, 2.0), rel=0.08)


def mean_wait(servers: int, load: float, seed: int) -> float:
    """Of 15,000 requests whose service time has mean 2 s (geometric: 200 steps of 10 ms)."""
    mean_tokens, step_s = 200, 0.01
    rng = np.random.default_rng(seed)
    traffic = Traffic("t", "m")

    def make(at: float) -> ClientRequest:
        return ClientRequest(at, traffic, "a", 1, int(rng.geometric(1 / mean_tokens)))

    rate = load / (mean_tokens * step_s)
    until = 15_000 / rate
    engine = LlmEngineSpec(StepProfile(step_s, 0, 0, 0, 10**6), max_num_seqs=1)
    workload = WorkloadSpec.model_validate(
        {"name": "t", "model": "m", "arrival": {"process": "poisson", "rate": 1}}
    )
    simulation = Simulation(
        [NodeSpec(EngineSpec(f"e-{i}", ("m",), 1), engine) for i in range(servers)],
        [open_loop(make, RateSchedule.constant(rate), 1.0, rng, until_s=until)],
        controller_factory("fifo", Limits(10**6, queue_timeout_s=1e6)),
        Surroundings(network_s=0.0, until_s=until, drain_s=1e5),
        RequestFacts({"t": workload}, rng),
    )
    return float(simulation.run().column("queued_s").mean())


def figures(policy: dict[str, Any], rate: float = 8, *, batch: bool = True) -> Figures:
    """Four engines, Azure chat, with or without the backlog: the research page's set-up."""
    workloads: list[dict[str, Any]] = [
        {
            "name": "chat",
            "arrival": {"process": "poisson", "rate": rate},
            "slo": {"ttft_s": 1.0, "tpot_s": 0.1} if batch else {"ttft_s": 2.0, "tpot_s": 0.15},
        }
    ]
    if batch:
        workloads.append(
            {
                "name": "batch",
                "band": "batch",
                "stream": False,
                "arrival": {"process": "closed", "outstanding": 1200},
                "lengths": "arxiv-summary",
            }
        )
    spec = parse_scenario(
        {
            "name": "published",
            "duration_s": 600,
            "warmup_s": 180,
            "engines": [{"name": "llm", "count": 4}],
            "workloads": workloads,
            "policies": [{"name": "it", **policy}],
        }
    )
    variant = Variant("it", "it", policy["use"], policy.get("options", {}), policy["engines"])
    return run_one(spec, variant, 0).figures


LOR = "baseline:least_outstanding"
# TTFT p50/p99 s, TPOT p50/p99 s, interactive goodput, batch tokens/s: research 1.4.
PUBLISHED: list[tuple[dict[str, Any], tuple[float, ...]]] = [
    ({"max_num_seqs": 256}, (91.8, 107.8, 0.310, 0.379, 0.0, 22_300)),
    ({"scheduling": "priority"}, (0.789, 1.807, 0.313, 0.367, 0.014, 19_400)),
    ({"scheduling": "priority", "max_num_seqs": 48}, (0.607, 2.196, 0.075, 0.096, 0.79, 8_400)),
    ({"scheduling": "priority", "max_num_seqs": 56}, (0.588, 2.071, 0.084, 0.105, 0.79, 9_700)),
    ({"scheduling": "priority", "max_num_seqs": 64}, (0.566, 1.769, 0.093, 0.113, 0.72, 10_900)),
]


@pytest.mark.parametrize(("engines", "published"), PUBLISHED)
def test_interactive_beside_batch_as_published(
    engines: dict[str, Any], published: tuple[float, ...]
) -> None:
    found = figures({"use": LOR, "engines": engines})
    ttft50, ttft99, tpot50, tpot99, goodput, batch = published
    assert found["chat.ttft_s.p50"] == pytest.approx(ttft50, rel=0.1)
    assert found["chat.ttft_s.p99"] == pytest.approx(ttft99, rel=0.15)
    assert found["chat.tpot_s.p50"] == pytest.approx(tpot50, rel=0.05)
    assert found["chat.tpot_s.p99"] == pytest.approx(tpot99, rel=0.12)
    assert found["chat.goodput"] == pytest.approx(goodput, abs=0.04)
    assert found["batch.tokens_per_s"] == pytest.approx(batch, rel=0.15)


@pytest.mark.parametrize(
    ("rate", "ttft50", "ttft99", "tpot99"), [(16, 0.198, 0.810, 0.124), (18.5, 0.274, 1.038, 0.188)]
)
def test_one_class_as_published(rate: float, ttft50: float, ttft99: float, tpot99: float) -> None:
    found = figures({"use": LOR, "engines": {}}, rate, batch=False)
    assert found["chat.ttft_s.p50"] == pytest.approx(ttft50, rel=0.15)
    assert found["chat.ttft_s.p99"] == pytest.approx(ttft99, rel=0.3)
    assert found["chat.tpot_s.p99"] == pytest.approx(tpot99, rel=0.15)


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("fifo", "beside-batch-bursts"),
        ("least_outstanding", "beside-batch-bursts"),
        ("hybrid", "beside-batch-bursts"),
        ("hybrid", "cpu-offload"),
    ],
)
def test_a_recorded_run_replays_to_the_same_decisions(name: str, scenario: str) -> None:
    duration_s = 60.0 if scenario == "beside-batch-bursts" else 10.0
    spec = read_scenario(known_scenarios()[scenario]).model_copy(
        update={"duration_s": duration_s, "warmup_s": 0.0}
    )
    log: list[tuple[Any, float, list[Any]]] = []
    simulation = assemble(
        spec,
        Variant(name, name, name, {}, {}),
        0,
        journal=lambda _, event, now, actions: log.append((event, now, list(actions))),
    )
    simulation.run()
    limits = simulation.controllers[0].limits  # type: ignore[attr-defined]
    again = ControlPlaneManager(name, limits, remember=0)
    assert len(log) > 500
    for event, now, actions in log:
        assert list(again.handle(event, now)) == actions
    json.dumps([now for _, now, _ in log])
