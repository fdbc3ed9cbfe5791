"""The real gateway between load generator and mock engines, all in one process and in virtual
time: what it does to requests is what its simulation says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sage_bench.claims import Verdict
from sage_bench.live.agreement import compare
from sage_bench.live.observation import METRICS, Observation, of_records
from sage_bench.live.replay import arrivals_of, requests_of
from sage_bench.live.runs import simulate
from sage_bench.load import open_loop
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
from sage_bench.simulation.scenario_file import parse_scenario
from sage_bench.simulation.step_profile import embedding_profile, step_profile
from sage_gateway import answer_relay, inference, scheduler, stall_guard
from sage_gateway.app import GatewayApp
from sage_gateway.auth import KeyRing
from sage_gateway.config import GatewayConfig
from sage_gateway.engines import EngineConfig, ServedModel
from sage_gateway.gateway import Gateway
from sage_gateway.server import make_server
from sage_prefect.control_plane.events import Action, Arrival, Done, Event, FirstToken, Progress
from sage_prefect.control_plane.events import Limits as SchedulingLimits
from sage_prefect.control_plane.manager import ControlPlaneManager

Virtually = Callable[[Any], Any]
GATEWAY_PORT = 40_000
ENGINES, WINDOW = 4, 64


def scenario(policy: str) -> ScenarioSpec:
    return parse_scenario(
        {
            "name": "small",
            "duration_s": 60,
            "warmup_s": 5,
            "drain_s": 1000,
            "network_ms": 0,
            "progress_s": 0.25,
            "engines": [{"name": "llm", "count": ENGINES, "window": WINDOW}],
            "workloads": [
                {
                    "name": "chat",
                    "arrival": {"process": "gamma", "rate": 5, "cv": 1.5},
                    "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
                },
                {
                    "name": "batch",
                    "band": "batch",
                    "stream": False,
                    "arrival": {"process": "poisson", "rate": 2},
                },
            ],
            "policies": [policy],
        }
    )


Heard = list[tuple[Event, float]]


async def observed(spec: ScenarioSpec, seed: int, heard: Heard | None = None) -> Observation:
    """The scenario through the gateway, in the running loop.

    Args:
        heard: gets what the control plane is told, and when.
    """
    loop: Any = asyncio.get_running_loop()
    requests = requests_of(spec, seed)
    [group] = spec.engines
    window = group.window or WINDOW
    llm = LlmEngineSpec(step_profile(group.profile), max_num_seqs=window)
    mock = MockSpec(llm, EmbeddingEngineSpec(embedding_profile("gpu-ragged")), Limits(("chat",)))
    async with MockServer(mock, group.count, clock=loop.time) as engines:
        config = GatewayConfig(
            tuple(
                EngineConfig(
                    f"llm-{number}",
                    engines.url(number),
                    (ServedModel("chat"),),
                    "vllm",
                    "cuda",
                    window,
                )
                for number in range(group.count)
            ),
            policy=spec.policies[0].use,
            scheduling=SchedulingLimits(
                spec.limits.max_queued_requests,
                queue_timeout_s=spec.limits.queue_timeout_s,
                max_retries=spec.limits.max_retries,
            ),
        )
        gateway = Gateway(config, KeyRing(None, (), open_to_all=True))
        if heard is not None:
            gateway.scheduler.manager = Overheard(gateway.manager, heard)  # type: ignore[assignment]
        server = make_server(GatewayApp(gateway, on_loopback=True), config)
        server.config.load()
        loop.factories[GATEWAY_PORT] = lambda: server.config.http_protocol_class(  # type: ignore[call-arg, operator]
            config=server.config, server_state=server.server_state, app_state={}, _loop=loop
        )
        probes = asyncio.create_task(gateway.check_engines())
        try:
            target = Target.parse(f"http://127.0.0.1:{GATEWAY_PORT}")
            async with Client([target], clock=loop.time) as client:
                bounds = Bounds(requests=len(requests), drain_s=1000)
                run = await OpenLoop(client, arrivals_of(requests, spec, seed), bounds).run()
        finally:
            probes.cancel()
            await asyncio.gather(probes, return_exceptions=True)
            await gateway.close()
    return of_records(run.records, [request.traffic.name for request in requests])


class Overheard:
    """A control plane whose events are written down first."""

    def __init__(self, manager: ControlPlaneManager, heard: Heard) -> None:
        self._manager, self._heard = manager, heard

    def handle(self, event: Event, now: float) -> list[Action]:
        self._heard.append((event, now))
        return self._manager.handle(event, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


Story = list[tuple[type, float, int | None]]


def streams(heard: Heard) -> list[Story]:
    """Of each stream, in the order of arrival: what was told of it, when, and how many tokens."""
    found: dict[str, Story] = {}
    started = next(now for event, now in heard if isinstance(event, Arrival))
    for event, now in heard:
        at = now - started
        if isinstance(event, Arrival) and event.request.stream:
            found[event.request.request_id] = []
        elif isinstance(event, (FirstToken, Progress, Done)) and event.request_id in found:
            tokens = {Progress: "chunks", Done: "output_tokens"}.get(type(event))
            story = found[event.request_id]
            story.append((type(event), at, getattr(event, tokens) if tokens else None))
    return list(found.values())


@pytest.fixture
def virtual_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway and the load generator read the loop's time, to its last digit."""
    for module in (scheduler, inference, answer_relay, stall_guard):
        monkeypatch.setattr(module, "clock", lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(open_loop, "_NOW_S", 1e-9)


@pytest.mark.usefixtures("virtual_clocks")
@pytest.mark.parametrize("policy", ["least_outstanding", "hybrid"])
def test_the_gateway_does_what_its_simulation_says(virtually: Virtually, policy: str) -> None:
    spec = scenario(policy)
    live = virtually(observed(spec, 1))
    simulated = simulate(spec, spec.policies[0], requests_of(spec, 1), 1)
    assert live.done.all()
    assert simulated.done.all()
    # Where two events fall on one instant their order is open; hybrid's estimates depend on it.
    if policy == "least_outstanding":
        for name in METRICS:
            known = np.isfinite(simulated.metrics[name])
            np.testing.assert_allclose(
                live.metrics[name][known], simulated.metrics[name][known], atol=1e-9, err_msg=name
            )
    agreement = compare(simulated, live, live, simulated, warmup_s=spec.warmup_s)
    assert len(agreement.rows) >= 10
    assert agreement.verdict is Verdict.PASS, agreement


@pytest.mark.usefixtures("virtual_clocks")
def test_both_drivers_tell_the_control_plane_the_same_of_the_same_streams(
    virtually: Virtually,
) -> None:
    spec = scenario("least_outstanding")
    live: Heard = []
    simulated: Heard = []
    virtually(observed(spec, 1, live))
    simulate(
        spec,
        spec.policies[0],
        requests_of(spec, 1),
        1,
        journal=lambda _, event, now, actions: simulated.append((event, now)),
    )
    stories = streams(live)
    assert len(stories) > 200
    for whole, other in zip(stories, streams(simulated), strict=True):
        # The last token and the end come at one instant, in one read or in two: a report may be
        # due in between.
        story = [one for one in whole if one[0] is not Progress or one[1] < whole[-1][1] - 1e-6]
        assert len(whole) - len(story) <= 1
        assert [(kind, n) for kind, _, n in story] == [(kind, n) for kind, _, n in other]
        assert [at for _, at, _ in story] == pytest.approx([at for _, at, _ in other], abs=1e-6)
        kinds = [kind for kind, _, _ in story]
        reports = len(kinds) - 2
        assert kinds == [FirstToken, *[Progress] * reports, Done]
        told = [tokens for _, _, tokens in story[1:]]
        # The first token came with the first read; since the last report there were few more.
        left = told[-1] - 1 - sum(told[:-1])
        assert 0 <= left <= 9


COLD = {
    # Profile: window, scale of the lengths, chats per second (of three engines, with as much batch
    # work: 30 % of what they can do), promises.
    "cpu-small": (8, 0.25, 0.35, 5.0, 0.2),
    "h100-8b": (64, 1.0, 5.0, 0.5, 0.05),
    "h100-70b": (64, 1.0, 1.5, 1.0, 0.1),
}


def cold_start(policy: str, profile: str) -> ScenarioSpec:
    window, scale, rate, ttft_s, tpot_s = COLD[profile]
    arrival = {"process": "poisson", "rate": rate}
    return parse_scenario(
        {
            "name": "cold-start",
            "duration_s": 400 if profile == "cpu-small" else 60,
            "warmup_s": 0,
            "drain_s": 1000,
            "network_ms": 0,
            "progress_s": 0.25,
            "engines": [{"name": "llm", "count": 3, "profile": profile, "window": window}],
            "workloads": [
                {
                    "name": "chat",
                    "arrival": arrival,
                    "length_scale": scale,
                    "slo": {"ttft_s": ttft_s, "tpot_s": tpot_s},
                },
                {
                    "name": "batch",
                    "band": "batch",
                    "stream": False,
                    "length_scale": scale,
                    "arrival": arrival,
                },
            ],
            "policies": [policy],
        }
    )


@pytest.mark.usefixtures("virtual_clocks")
@pytest.mark.parametrize("profile", list(COLD))
def test_at_low_load_hybrid_serves_unknown_engines_as_well_as_least_outstanding(
    virtually: Virtually, profile: str
) -> None:
    *_, ttft_s, tpot_s = COLD[profile]
    goodput, batch_s = {}, {}
    for policy in ("least_outstanding", "hybrid"):
        run = virtually(observed(cold_start(policy, profile), 3))
        assert run.done.all(), "none is refused"
        chats = run.workloads == "chat"
        late = (run.metrics["ttft_s"] > ttft_s) | (run.metrics["tpot_s"] > tpot_s)
        goodput[policy] = 1.0 - late[chats].mean()
        batch_s[policy] = np.median(run.metrics["e2e_s"][~chats])
    assert goodput["hybrid"] >= goodput["least_outstanding"] - 0.02
    # Packed into fewer engines it takes longer inside, but it is not held while they are idle.
    assert batch_s["hybrid"] < 2.0 * batch_s["least_outstanding"]
