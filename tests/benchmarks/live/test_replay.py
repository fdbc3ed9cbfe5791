"""A scenario on the wire: the same requests, and with the wall clock replaced the same times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from sage_bench.claims import Verdict
from sage_bench.live.agreement import compare
from sage_bench.live.observation import METRICS, Observation, of_records
from sage_bench.live.replay import arrivals_of, check_replayable, requests_of
from sage_bench.live.runs import simulate
from sage_bench.load.client import Client
from sage_bench.load.open_loop import OpenLoop
from sage_bench.load.run import Bounds
from sage_bench.load.target import Target
from sage_bench.mock_engine.api import Limits
from sage_bench.mock_engine.engine import MockSpec
from sage_bench.mock_engine.server import MockServer
from sage_bench.simulation.embedding_engine import EmbeddingEngineSpec
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.simulation.scenario_file import known_scenarios, parse_scenario, read_scenario
from sage_bench.simulation.step_profile import embedding_profile, step_profile
from sage_prefect.common.errors import SettingsError

Virtually = Callable[[Any], Any]


def scenario(**changes: Any) -> ScenarioSpec:
    content: dict[str, Any] = {
        "name": "small",
        "duration_s": 30,
        "warmup_s": 2,
        "drain_s": 1000,
        "network_ms": 0,
        "engines": [{"name": "llm", "count": 3, "profile": "h100-70b"}],
        "workloads": [
            {
                "name": "chat",
                "arrival": {"process": "poisson", "rate": 6},
                "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
            },
            {
                "name": "batch",
                "band": "batch",
                "stream": False,
                "arrival": {"process": "gamma", "rate": 2, "cv": 2.0},
                "lengths": "arxiv-summary",
            },
        ],
        "policies": ["round_robin"],
    }
    return parse_scenario({**content, **changes})


def test_the_wire_carries_what_the_simulation_draws() -> None:
    spec = scenario()
    requests = requests_of(spec, seed=1)
    assert [r.at for r in requests] == sorted(r.at for r in requests)
    assert {r.traffic.name for r in requests} == {"chat", "batch"}
    for request, (at, sent) in zip(requests, arrivals_of(requests, spec, 1), strict=True):
        body = orjson.loads(sent.body)
        assert at == request.at
        assert len(body["messages"][0]["content"].split()) == request.prompt
        assert body["mock_output_tokens"] == request.output
        assert "max_tokens" not in body, "the gateway must not know the answer's length"
        assert body["stream"] is (request.traffic.name == "chat")
        headers = dict(sent.headers)
        if request.traffic.name == "chat":
            assert headers["x-slo-ttft-ms"] == "1000"
            assert headers["x-slo-tpot-ms"] == "100"
        assert headers["x-sage-band"] == sent.band
    simulated = simulate(spec, spec.policies[0], requests, 1)
    assert simulated.at_s.tolist() == [request.at for request in requests]
    assert simulated.workloads.tolist() == [request.traffic.name for request in requests]


def test_a_run_in_virtual_time_is_its_simulation(virtually: Virtually) -> None:
    """Load generator, HTTP, SSE and mock engines, in virtual time and without a gateway: the
    client goes round the engines, as the simulated policy does, and every request has the
    simulated times."""
    spec = scenario()
    requests = requests_of(spec, seed=2)
    llm = LlmEngineSpec(step_profile("h100-70b"))
    embedding = EmbeddingEngineSpec(embedding_profile("gpu-ragged"))

    async def main() -> Observation:
        clock = asyncio.get_running_loop().time
        mock = MockSpec(llm, embedding, Limits(("chat",)))
        async with MockServer(mock, 3, clock=clock) as server:
            targets = [Target.parse(engine["url"]) for engine in server.describe()["engines"]]
            async with Client(targets, clock=clock) as client:
                bounds = Bounds(requests=len(requests), drain_s=1000)
                run = await OpenLoop(client, arrivals_of(requests, spec, 2), bounds).run()
        return of_records(run.records, [request.traffic.name for request in requests])

    live, simulated = virtually(main()), simulate(spec, spec.policies[0], requests, 2)
    assert live.done.all()
    assert simulated.done.all()
    for name in METRICS:
        known = np.isfinite(simulated.metrics[name])
        assert np.array_equal(known, np.isfinite(live.metrics[name])), name
        # Two arrivals within half a millisecond would leave together; here none matter.
        np.testing.assert_allclose(
            live.metrics[name][known], simulated.metrics[name][known], atol=1e-6, err_msg=name
        )
    agreement = compare(simulated, live, live, simulated, warmup_s=spec.warmup_s)
    assert {row.workload for row in agreement.rows} == {"chat", "batch"}
    assert all(row.ratio.estimate == pytest.approx(1, abs=1e-5) for row in agreement.rows)
    assert agreement.verdict is Verdict.PASS


RATE = {"process": "poisson", "rate": 1}
CLOSED = {"process": "closed", "outstanding": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engines": [{"kind": "embedding"}]}, "embed"),
        ({"engines": [{"scheduling": "priority"}]}, "priority"),
        ({"engines": [{"cold": True}]}, "cold"),
        ({"gateways": 2}, "gateways"),
        ({"staleness_s": 1.0}, "staleness_s"),
        ({"attempt_timeout_s": 5.0}, "attempt_timeout_s"),
        ({"faults": [{"at_s": 1, "engine": "llm-0", "kind": "crash"}]}, "faults"),
        ({"policies": ["baseline:lmetric"]}, "none of the gateway's"),
        ({"workloads": [{"name": "a", "arrival": CLOSED}]}, "reacts"),
        ({"workloads": [{"name": "a", "kind": "embedding", "arrival": RATE}]}, "independent chats"),
        ({"workloads": [{"name": "a", "tenants": {"count": 2}, "arrival": RATE}]}, "tenants"),
    ],
)
def test_what_cannot_run_live_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_replayable(scenario(**change))


def test_the_scenario_that_comes_with_sage_can_run_live() -> None:
    check_replayable(read_scenario(known_scenarios()["live-check"]))
