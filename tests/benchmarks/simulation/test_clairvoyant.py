"""The scheduler that knows the future: what it foresees comes true, and pays."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sage_bench.simulation.assembly import assemble, variants
from sage_bench.simulation.baselines import BASELINES
from sage_bench.simulation.baselines.foreseen_engine import Foreseen, ForeseenEngine
from sage_bench.simulation.baselines.foresight import Future, LendingPlan
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.metrics import measure
from sage_bench.simulation.scenario_file import parse_scenario
from sage_bench.simulation.sequence import Sequence
from sage_bench.simulation.step_profile import EmbeddingProfile, step_profile
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineProfile

STEPS = step_profile("h100-70b")
PROFILE = EngineProfile(STEPS.c0, STEPS.a, STEPS.b, STEPS.g)
CALLS = EmbeddingProfile(0.0, 1e-5)  # 100,000 tokens a second


def foreseen(key: str, prompt: int, output: int, tpot_s: float = 0.1) -> Foreseen:
    return Foreseen(key, 0.0, prompt, output, 1.0, tpot_s)


def test_the_outlook_comes_true() -> None:
    """Against the simulated engine itself: one more prompt beside answers of many lengths."""
    engine, truth = ForeseenEngine(PROFILE, lambda _: 1.0), LlmEngine(LlmEngineSpec(STEPS))
    inside = [Sequence(str(i), 200 + 37 * i, 60 + 13 * i) for i in range(20)]
    for sequence in inside:
        truth.submit(sequence, 0.0)
    ends: dict[str, float] = {}

    def run(until: float) -> None:
        while truth.next_at < until:
            for emission in truth.advance(truth.next_at):
                if emission.finished:
                    ends[str(emission.sequence.key)] = emission.at

    now = 2.0
    run(now)
    for sequence in inside:
        one = foreseen(str(sequence.key), sequence.prompt, sequence.output)
        one.first_at, one.made_at = sequence.first_at, now
        one.made = truth.generated(sequence, now)
        engine.inside[one.key] = one
    view = engine.outlook(now, foreseen("extra", 1500, 120))
    extra = Sequence("extra", 1500, 120)
    truth.submit(extra, now)
    run(math.inf)
    assert view.first_at - now == pytest.approx(extra.first_at - now, rel=0.25)
    assert view.ended_at - now == pytest.approx(ends["extra"] - now, rel=0.02)


def test_the_outlook_names_who_will_be_late() -> None:
    engine = ForeseenEngine(PROFILE, lambda _: 1.0)
    for i in range(40):
        one = foreseen(str(i), 1000, 100, tpot_s=0.04 if i == 3 else 0.2)
        one.first_at, one.made = 0.0, 1
        engine.inside[one.key] = one
    assert [seq.key for seq in engine.outlook(0.0).late] == ["3"]
    halved = ForeseenEngine(PROFILE, lambda _: 6.0)
    halved.inside = engine.inside
    assert len(halved.outlook(0.0).late) == 40


def test_the_plan_lends_before_calls_come_and_ends_with_them() -> None:
    calls = [(t / 10, (10_000,)) for t in range(200, 400)]  # a whole accelerator, from 20 to 40 s
    demand = Future(tuple(calls)).demand(CALLS, 100.0, ahead_s=4.0)
    plan = LendingPlan(demand, 3, round_up=0.2, pace=1.0)
    assert not plan.lent(0, 10.0)
    assert 16.0 <= plan.lent_at(0, 10.0) <= 20.0
    assert plan.lent(0, 25.0)
    assert plan.lent_at(0, 25.0) == 25.0
    assert not plan.lent(0, 60.0)
    assert plan.lent_at(0, 60.0) == plan.lent_at(1, 0.0) == math.inf
    assert plan.stretch(0, 25.0) == 2.0
    assert plan.stretch(2, 25.0) == 1.0


def test_one_accelerator_is_never_lent() -> None:
    demand = Future(tuple((t / 10, (90_000,)) for t in range(500))).demand(CALLS, 60.0, 1.0)
    plan = LendingPlan(demand, 2, round_up=0.2, pace=1.0)
    assert plan.lent(0, 30.0)
    assert not plan.lent(1, 30.0)
    assert plan.share(1, 30.0) == 1.0


def scenario(policies: list[dict[str, Any] | str]) -> dict[str, Any]:
    return {
        "name": "swing",
        "duration_s": 200,
        "warmup_s": 40,
        "drain_s": 60,
        "progress_s": 0.25,
        "engines": [
            {"name": "llm", "count": 2, "profile": "h100-70b", "gpu": "g"},
            {"kind": "embedding", "name": "embed", "count": 2, "gpu": "g", "window": 2},
        ],
        "workloads": [
            {
                "name": "chat",
                "arrival": {"process": "bursts", "low": 7, "high": 3, "low_s": 60, "high_s": 60},
                "lengths": "azure-conv",
                "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
            },
            {
                "name": "ingest",
                "kind": "embedding",
                "model": "embed",
                "arrival": {"process": "bursts", "low": 2, "high": 18, "low_s": 60, "high_s": 60},
                "calls": {"query_share": 0.0, "inputs_min": 16, "inputs_max": 256},
                "slo": {"e2e_s": 10.0},
            },
        ],
        "policies": policies,
    }


def test_knowing_the_future_pays() -> None:
    spec = parse_scenario(scenario(["baseline:clairvoyant", "baseline:least_outstanding"]), "test")
    found = {}
    for policy in spec.policies:
        simulation = assemble(spec, variants(policy)[0], 0)
        simulation.run()
        found[policy.label] = measure(simulation, 40.0, 200.0)
    knowing, blind = found["clairvoyant"], found["least_outstanding"]
    assert knowing["chat.goodput"] > blind["chat.goodput"] + 0.2
    assert knowing["ingest.goodput"] > 0.9
    assert knowing["chat.tpot_s.p95"] <= 0.105  # what it sends keeps its promise
    for figures in found.values():
        assert 0.0 < figures["chat.ttft_alone_s.mean"] < figures["chat.ttft_s.mean"]


def test_it_runs_only_where_it_is_told() -> None:
    with pytest.raises(SettingsError, match="tells it all"):
        BASELINES["clairvoyant"]()
    with pytest.raises(SettingsError, match="no option 'future'"):
        BASELINES["clairvoyant"].check_options({"future": None})
