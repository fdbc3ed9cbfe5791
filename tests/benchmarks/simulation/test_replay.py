"""A simulated run, written to a log and read back, replays to the same decisions: each policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sage_bench.simulation.assembly import Variant, assemble
from sage_bench.simulation.scenario_file import parse_scenario
from sage_prefect.control_plane.events import (
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineReport,
    Failed,
    FirstToken,
    Limits,
    Reject,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.platform.event_log import EventLogWriter, read_log, replay

SEED = 11
SCENARIO: dict[str, Any] = {
    "name": "replay",
    "duration_s": 15,
    "warmup_s": 0,
    "drain_s": 100,
    "attempt_timeout_s": 8,
    "progress_s": 0.5,
    "limits": {"queue_timeout_s": 4, "max_retries": 2, "max_queued_requests": 30},
    "bands": [{"band": "interactive", "age_limit_s": 1, "reject_share": 0.3}],
    "engines": [
        {"name": "llm", "count": 3, "profile": "h100-8b", "window": 3, "max_num_seqs": 3},
        {"kind": "embedding", "name": "embed", "count": 1, "window": 2},
    ],
    "workloads": [
        {
            "name": "chat",
            "arrival": {"process": "gamma", "rate": 12, "cv": 2},
            "length_scale": 0.2,
            "tenants": {"count": 5},
            "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
            "patience_s": 0.5,
        },
        {
            "name": "batch",
            "band": "batch",
            "stream": False,
            "arrival": {"process": "closed", "outstanding": 12},
            "length_scale": 0.1,
        },
        {
            "name": "embed",
            "kind": "embedding",
            "model": "embed",
            "arrival": {"process": "poisson", "rate": 4},
            "calls": {"query_share": 0.5, "inputs_min": 2, "inputs_max": 20},
        },
    ],
    "policies": ["fifo"],
    "faults": [
        {"at_s": 3, "engine": "llm-0", "kind": "crash", "for_s": 4},
        {"at_s": 6, "engine": "llm-1", "kind": "hang", "for_s": 5},
        {"at_s": 9, "engine": "llm-2", "kind": "slow", "for_s": 4, "factor": 0.3},
        {"at_s": 11, "engine": "*", "kind": "refuse", "for_s": 1},
    ],
}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_log_of_a_bad_day_replays(name: str, tmp_path: Path) -> None:
    spec = parse_scenario(SCENARIO)
    with EventLogWriter(tmp_path / "log") as writer:
        simulation = assemble(
            spec,
            Variant(name, name, name, {}, {}),
            SEED,
            journal=lambda _, event, now, actions: writer.record(event, now, list(actions)),
        )
        simulation.run()
    assert writer.stopped is None
    log = read_log(tmp_path / "log")
    events = {type(step.event) for step in log}
    assert {Arrival, Cancel, Done, EngineReport, Failed, FirstToken, Timer} <= events
    actions = {type(action) for step in log for action in step.actions}
    assert {Dispatch, Reject} <= actions
    [controller] = simulation.controllers
    assert isinstance(controller, ControlPlaneManager)
    limits: Limits = controller.limits
    replayed = replay(log, lambda: ControlPlaneManager(name, limits, remember=0, seed=SEED))
    assert replayed.difference is None, str(replayed.difference)
    assert replayed.steps == writer.steps > 300


def test_a_replay_under_another_policy_names_where_it_differs(tmp_path: Path) -> None:
    with EventLogWriter(tmp_path / "log") as writer:
        simulation = assemble(
            parse_scenario(SCENARIO),
            Variant("fifo", "fifo", "fifo", {}, {}),
            SEED,
            journal=lambda _, event, now, actions: writer.record(event, now, list(actions)),
        )
        simulation.run()
    [controller] = simulation.controllers
    assert isinstance(controller, ControlPlaneManager)
    limits = controller.limits
    log = read_log(tmp_path / "log")
    replayed = replay(log, lambda: ControlPlaneManager("hybrid", limits, seed=SEED))
    assert replayed.difference is not None
