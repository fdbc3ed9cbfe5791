"""None lost, none served twice, tokens kept: every policy and baseline under random faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.simulation.assembly import Variant, assemble
from sage_bench.simulation.controller import controller_names
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.metrics import measure
from sage_bench.simulation.records import Outcome
from sage_bench.simulation.scenario_file import parse_scenario
from sage_bench.simulation.simulation import Simulation
from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Cancel,
    Dispatch,
    Done,
    Event,
    Failed,
    Reject,
)
from sage_prefect.control_plane.manager import ControlPlaneManager


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    kinds = st.sampled_from(["crash", "slow", "hang", "refuse"])
    faults = [
        {
            "at_s": draw(st.floats(0, 20)),
            "engine": draw(st.sampled_from(["llm-0", "llm-1", "llm-*", "*", "embed-0"])),
            "kind": draw(kinds),
            "for_s": draw(st.floats(0.1, 15)),
            "factor": draw(st.floats(0.1, 2)),
        }
        for _ in range(draw(st.integers(0, 4)))
    ]
    return {
        "name": "random",
        "duration_s": 25,
        "warmup_s": 0,
        "drain_s": 2000,
        "detection_s": draw(st.floats(0, 3)),
        "network_ms": draw(st.sampled_from([0.0, 0.5])),
        "gateway_ms": draw(st.sampled_from([0.0, 0.2])),
        "gateways": draw(st.integers(1, 2)),
        "staleness_s": draw(st.sampled_from([0.0, 1.0])),
        "progress_s": draw(st.sampled_from([0.0, 0.25])),
        "attempt_timeout_s": draw(st.sampled_from([2.0, 30.0])),
        "bands": [{"band": "interactive", "age_limit_s": 5, "reject_share": 0.5}],
        "limits": {"queue_timeout_s": draw(st.floats(0.5, 60)), "max_retries": 1},
        "engines": [
            {
                "name": "llm",
                "count": 2,
                "profile": "h100-8b",
                "gpu": "g",
                "window": draw(st.integers(1, 8)),
                "max_num_seqs": draw(st.integers(1, 8)),
                "kv_tokens": 4000,
                "max_waiting": draw(st.sampled_from([None, 0, 2])),
                "scheduling": draw(st.sampled_from(["fcfs", "priority"])),
            },
            {"kind": "embedding", "name": "embed", "count": 2, "gpu": "g", "window": 2},
        ],
        "workloads": [
            {
                "name": "chat",
                "arrival": {"process": "poisson", "rate": 6},
                "length_scale": 0.1,
                "tenants": {"count": 3},
                "patience_s": draw(st.sampled_from([None, 0.5, 3.0])),
            },
            {
                "name": "batch",
                "band": "batch",
                "stream": False,
                "arrival": {"process": "closed", "outstanding": 5},
                "length_scale": 0.1,
            },
            {
                "name": "embed",
                "kind": "embedding",
                "model": "embed",
                "arrival": {"process": "gamma", "rate": 3, "cv": 3},
                "calls": {"query_share": 0.5, "inputs_min": 2, "inputs_max": 30},
                "estimate_error": 0.3,
            },
        ],
        "policies": ["fifo"],
        "faults": faults,
    }


class Books:
    """Follows every attempt from its dispatch to its end, through the eyes of the gateways."""

    def __init__(self) -> None:
        self.inside: dict[tuple[int, str], str] = {}
        self.twice: list[str] = []
        """Requests that were sent while an engine had them, or answered after they had ended."""
        self._ended: set[tuple[int, str]] = set()

    def take(self, gateway: int, event: Event, now: float, actions: Sequence[Action]) -> None:
        if isinstance(event, Done | Failed):
            self.inside.pop((gateway, event.request_id), None)
        if isinstance(event, Done | Cancel):
            self._end(gateway, event.request_id)
        for action in actions:
            if isinstance(action, Abort):
                self.inside.pop((gateway, action.request_id), None)
            elif isinstance(action, Reject):
                self._end(gateway, action.request_id)
            elif isinstance(action, Dispatch):
                key = (gateway, action.request_id)
                if key in self.inside or key in self._ended:
                    self.twice.append(action.request_id)
                self.inside[key] = action.engine

    def _end(self, gateway: int, request_id: str) -> None:
        self._ended.add((gateway, request_id))


def check(simulation: Simulation) -> None:
    records = simulation.run()
    columns = records.columns()
    outcome = columns["outcome"]
    open_loop = columns["traffic"] != [t.name for t in records.traffics].index("batch")
    asked = simulation.clients.asked
    assert len(records) == asked
    assert not simulation.clients.flights
    # All open-loop requests have ended: nothing waits for ever.
    assert (outcome[open_loop] != Outcome.UNFINISHED).all()
    done = outcome == Outcome.DONE
    assert np.isfinite(columns["e2e_s"][done]).all()
    assert (columns["e2e_s"][done] >= columns["ttft_s"][done]).all()
    assert (columns["ttft_s"][done] > 0).all()
    for node in simulation.fleet.nodes:
        engine = node.engine
        if isinstance(engine, LlmEngine):
            assert 0 <= engine.free_tokens <= engine.spec.profile.kv_tokens
            if not node.inside:
                assert engine.free_tokens == engine.spec.profile.kv_tokens or engine.running
    measure(simulation, 0.0, 25.0)


@pytest.mark.parametrize("name", sorted(controller_names()))
@settings(max_examples=6, deadline=None)
@given(content=scenarios(), seed=st.integers(0, 1000))
def test_every_request_ends_exactly_once(name: str, content: dict[str, Any], seed: int) -> None:
    spec = parse_scenario(content)
    books = Books()
    simulation = assemble(spec, Variant(name, name, name, {}, {}), seed, journal=books.take)
    check(simulation)
    assert not books.twice
    for controller in simulation.controllers:
        if isinstance(controller, ControlPlaneManager):
            # What the manager still holds is the backlog that the end of the run cut off.
            assert controller.queued + controller.running <= 2 * 5 + 1


@pytest.mark.parametrize("name", sorted(controller_names()))
def test_tokens_in_are_tokens_out(name: str) -> None:
    spec = parse_scenario(
        {
            "name": "tokens",
            "duration_s": 60,
            "warmup_s": 0,
            "drain_s": 1000,
            "engines": [{"name": "llm", "count": 2, "window": 64}],
            "workloads": [{"name": "chat", "arrival": {"process": "poisson", "rate": 8}}],
            "policies": ["fifo"],
        }
    )
    simulation = assemble(spec, Variant(name, name, name, {}, {}), 3)
    columns = simulation.run().columns()
    done = columns["outcome"] == Outcome.DONE
    engines = [n.engine for n in simulation.fleet.nodes if isinstance(n.engine, LlmEngine)]
    answered = columns["prompt"][done].sum() - columns["cached"][done].sum()
    assert sum(e.prefilled_tokens for e in engines) == answered + sum(
        e.recomputed_tokens for e in engines
    )
    assert done.any()


def test_the_same_seed_gives_the_same_run() -> None:
    spec = parse_scenario(
        {
            "name": "same",
            "duration_s": 40,
            "warmup_s": 0,
            "engines": [{"name": "llm", "count": 3}],
            "workloads": [
                {
                    "name": "chat",
                    "arrival": {"process": "gamma", "rate": 6, "cv": 2, "wander": 0.3},
                    "estimate_error": 0.2,
                }
            ],
            "policies": ["fifo"],
        }
    )
    for name in sorted(controller_names()):
        variant = Variant(name, name, name, {}, {})
        first, again, other = (
            assemble(spec, variant, seed).run().column("e2e_s") for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again, equal_nan=True)
        assert len(first) != len(other) or not np.array_equal(first, other)
