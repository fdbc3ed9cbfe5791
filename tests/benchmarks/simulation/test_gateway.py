"""The gateway's side of a simulation: batches, aborts, timeouts, replicas, its own cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sage_bench.simulation.assembly import Variant, assemble
from sage_bench.simulation.records import Outcome
from sage_bench.simulation.scenario_file import parse_scenario
from sage_bench.simulation.simulation import Simulation
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    Arrival,
    BatchDone,
    BatchFailed,
    BatchPart,
    Dispatch,
    DispatchBatch,
    Done,
    EngineReport,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    Timer,
)

FIFO = Variant("fifo", "fifo", "fifo", {}, {})


def scenario(**changes: Any) -> Any:
    content = {
        "name": "one",
        "duration_s": 30,
        "warmup_s": 0,
        "drain_s": 300,
        "engines": [{"name": "llm", "count": 2}],
        "workloads": [{"name": "chat", "arrival": {"process": "poisson", "rate": 2}}],
        "policies": ["fifo"],
    }
    return parse_scenario({**content, **changes})


def embedding(**changes: Any) -> Any:
    return scenario(
        engines=[{"kind": "embedding", "name": "embed", "count": 1, "model": "m"}],
        workloads=[
            {
                "name": "e",
                "kind": "embedding",
                "model": "m",
                "arrival": {"process": "poisson", "rate": 5},
                "calls": {"query_share": 0.0, "inputs_min": 3, "inputs_max": 3},
            }
        ],
        **changes,
    )


class Pairs:
    """Batches each pair of requests: all inputs of the first; the second's first input is taken
    for a copy of the first's."""

    def __init__(self) -> None:
        self.held: list[RequestInfo] = []
        self.sent = 0
        self.heard: list[Event] = []

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        if isinstance(event, Arrival):
            self.held.append(event.request)
            if len(self.held) < 2:
                return []
            first, second = self.held
            self.held = []
            self.sent += 1
            parts = [BatchPart(first.request_id, i) for i in range(1, len(first.inputs))]
            parts += [BatchPart(second.request_id, i) for i in range(1, len(second.inputs))]
            parts.append(BatchPart(first.request_id, 0, ((second.request_id, 0),)))
            return [DispatchBatch(self.sent, "embed-0", tuple(parts))]
        if isinstance(event, (BatchDone, BatchFailed)):
            self.heard.append(event)
        return []


def test_a_batch_answers_all_its_requests_and_computes_copies_once() -> None:
    controller = Pairs()
    simulation = assemble(embedding(), FIFO, 0, controllers=lambda: controller)
    columns = simulation.run().columns()
    done = columns["outcome"] == Outcome.DONE
    assert done.sum() == 2 * controller.sent > 50
    assert len(controller.heard) == controller.sent
    tokens = sum(e.prompt_tokens or 0 for e in controller.heard if isinstance(e, BatchDone))
    assert tokens < columns["prompt"][done].sum()
    first, second = columns["e2e_s"][:2]
    assert first > second > 0


def test_a_crash_fails_the_batch_and_answers_nothing() -> None:
    controller = Pairs()
    spec = embedding(faults=[{"at_s": 0.0, "engine": "embed-0", "kind": "crash"}])
    records = assemble(spec, FIFO, 0, controllers=lambda: controller).run()
    assert all(isinstance(event, BatchFailed) for event in controller.heard)
    assert len(controller.heard) == controller.sent
    assert not (records.column("outcome") == Outcome.DONE).any()


class GivesUp:
    """Sends each request as a batch and ends it after ``after_s``."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.sent = 0
        self.heard: list[Event] = []

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        if isinstance(event, Arrival):
            self.sent += 1
            request = event.request
            parts = tuple(BatchPart(request.request_id, i) for i in range(len(request.inputs)))
            return [DispatchBatch(self.sent, "embed-0", parts), SetTimer(now + self.after_s)]
        if isinstance(event, Timer):
            known = range(1, self.sent + 1)
            return [AbortBatch(number, "embed-0", "why not") for number in (*known, 999)]
        self.heard.append(event)
        return []


@pytest.mark.parametrize("after_s", [0.0001, 0.002])
def test_a_batch_that_is_given_up_is_not_heard_of(after_s: float) -> None:
    """Also one that has not reached its engine yet."""
    controller = GivesUp(after_s)
    simulation = assemble(embedding(), FIFO, 0, controllers=lambda: controller)
    records = simulation.run()
    assert controller.sent > 20
    assert not [event for event in controller.heard if isinstance(event, (BatchDone, BatchFailed))]
    assert not (records.column("outcome") == Outcome.DONE).any()
    assert not any(node.inside for node in simulation.fleet.nodes)


class Impatient:
    """Sends each request to the first engine, aborts it after 0.2 s, sends it to the second."""

    def __init__(self) -> None:
        self.due: list[tuple[float, str]] = []
        self.done: list[str] = []
        self.early: list[str] = []

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        if isinstance(event, Arrival):
            self.due.append((now + 0.2, event.request.request_id))
            return [
                Dispatch(event.request.request_id, "llm-0"),
                SetTimer(self.due[0][0]),
            ]
        if isinstance(event, Timer):
            actions: list[Action] = []
            while self.due and self.due[0][0] <= now:
                _, request_id = self.due.pop(0)
                if request_id not in self.done:
                    self.early.append(request_id)
                    actions.append(Abort(request_id, "llm-0", "moved"))
                    actions.append(Dispatch(request_id, "llm-1", 2))
            return [*actions, SetTimer(self.due[0][0])] if self.due else actions
        if isinstance(event, Done):
            assert event.request_id not in self.done, "served twice"
            self.done.append(event.request_id)
        return []


def test_an_aborted_attempt_is_not_heard_of_again() -> None:
    controller = Impatient()
    simulation = assemble(scenario(), FIFO, 0, controllers=lambda: controller)
    columns = simulation.run().columns()
    assert (columns["outcome"] == Outcome.DONE).all()
    assert len(controller.done) == len(columns["outcome"])
    moved = columns["attempts"] == 2
    assert moved.sum() == len(controller.early) > 20
    assert (columns["engine"][moved] == 1).all()
    assert (columns["e2e_s"][moved] > 0.2).all()
    assert simulation.fleet.wasted_tokens > 0
    # An engine notices an abort at its next step; the last one may have had none since.
    assert not simulation.fleet.node("llm-0").inside


def events_of(spec: Any, *kinds: type) -> tuple[Simulation, list[tuple[float, Any]]]:
    heard: list[tuple[float, Any]] = []

    def journal(_: int, event: Event, now: float, actions: Sequence[Action]) -> None:
        heard.extend((now, item) for item in (event, *actions) if isinstance(item, kinds))

    simulation = assemble(spec, FIFO, 0, journal=journal)
    simulation.run()
    return simulation, heard


def test_a_hang_is_noticed_and_attempts_time_out() -> None:
    spec = scenario(
        faults=[{"at_s": 5, "engine": "llm-0", "kind": "hang", "for_s": 10}],
        attempt_timeout_s=2.0,
        workloads=[{"name": "chat", "arrival": {"process": "poisson", "rate": 8}}],
        detection_s=1.0,
    )
    _, heard = events_of(spec, EngineReport, Failed)
    reports = [(now, e.state) for now, e in heard if isinstance(e, EngineReport)]
    assert reports == [(6.0, EngineState.SUSPECT), (16.0, EngineState.READY)]
    failures = [e for _, e in heard if isinstance(e, Failed)]
    assert failures
    assert {e.cause for e in failures} == {FailureCause.TIMEOUT}
    assert {e.engine for e in failures} == {"llm-0"}


def test_a_crashed_engine_refuses_and_comes_back_cold() -> None:
    spec = scenario(faults=[{"at_s": 5, "engine": "*", "kind": "crash", "for_s": 15}])
    simulation, heard = events_of(spec, EngineReport, Failed, Reject)
    assert [e.state for _, e in heard if isinstance(e, EngineReport)] == [
        EngineState.DOWN,
        EngineState.DOWN,
        EngineState.READY,
        EngineState.READY,
    ]
    assert any(isinstance(e, Failed) and e.cause is FailureCause.RESET for _, e in heard)
    columns = simulation.records.columns()
    refused = (columns["outcome"] == Outcome.REJECTED) & (columns["at"] > 6.1)
    assert refused.any()
    assert np.isfinite(columns["retry_after_s"][refused]).all()
    assert columns["at"][refused].max() < 21 - Limits().unavailable_wait_s, "later ones waited"
    late = columns["at"] > 12.0
    assert (columns["outcome"][late] == Outcome.DONE).all()


def test_progress_adds_up_to_the_answer_and_keeps_its_distance() -> None:
    _, heard = events_of(scenario(progress_s=0.25), Progress, FirstToken, Done)
    told: dict[str, int] = {}
    since: dict[str, float] = {}
    for now, event in heard:
        if isinstance(event, FirstToken):
            told[event.request_id], since[event.request_id] = 1, now
        elif isinstance(event, Progress):
            assert event.chunks > 0
            assert now - since[event.request_id] >= 0.25 - 1e-9
            told[event.request_id] += event.chunks
            since[event.request_id] = now
        elif isinstance(event, Done):
            # Steps of this engine take over 30 ms: at most 9 of them since the last report.
            assert 0 <= (event.output_tokens or 0) - told[event.request_id] <= 9
    assert told
    assert max(told.values()) > 9


def test_the_gateways_cost_delays_and_replicas_share_windows() -> None:
    free = assemble(scenario(), FIFO, 0).run()
    dear = assemble(scenario(gateway_ms=20.0), FIFO, 0).run()
    # The answer's bytes are relayed before the books are done, so only the arrival costs.
    assert dear.column("ttft_s").mean() == pytest.approx(
        free.column("ttft_s").mean() + 0.02, abs=0.005
    )
    pair = scenario(gateways=2, engines=[{"name": "llm", "count": 2, "window": 9}])
    simulation = assemble(pair, FIFO, 0)
    simulation.run()
    windows = [
        entry.spec.max_concurrency
        for controller in simulation.controllers
        for entry in controller.ledger  # type: ignore[attr-defined]
    ]
    assert windows == [4, 4, 4, 4]


def test_a_prompt_that_never_fits_is_an_error_of_its_own() -> None:
    spec = scenario(engines=[{"name": "llm", "kv_tokens": 300}])
    columns = assemble(spec, FIFO, 0).run().columns()
    failed = columns["outcome"] == Outcome.FAILED
    assert failed.any()
    assert (columns["prompt"] + columns["output"])[failed].min() > 300
    assert (columns["outcome"][~failed] == Outcome.DONE).all()


def test_engines_on_one_gpu_share_its_time() -> None:
    def run(rate: float) -> Simulation:
        spec = scenario(
            engines=[
                {"name": "llm", "gpu": "g"},
                {"kind": "embedding", "name": "embed", "gpu": "g", "gpu_share": 0.5, "window": 64},
            ],
            workloads=[
                {"name": "chat", "arrival": {"process": "poisson", "rate": 2}},
                {
                    "name": "ingest",
                    "kind": "embedding",
                    "model": "embed",
                    "arrival": {"process": "poisson", "rate": rate},
                    "calls": {"query_share": 0.0, "inputs_min": 64, "inputs_max": 64},
                },
            ],
        )
        simulation = assemble(spec, FIFO, 0)
        simulation.run()
        return simulation

    def of(simulation: Simulation, workload: str, column: str) -> Any:
        records = simulation.records
        number = [traffic.name for traffic in records.traffics].index(workload)
        columns = records.columns()
        return columns[column][columns["traffic"] == number]

    alone, beside = run(0.01), run(4.0)
    slower = np.nanmean(of(beside, "chat", "tpot_s")) / np.nanmean(of(alone, "chat", "tpot_s"))
    # Embeddings take 4 x 79 ms of each second, twice that while the LLM engine is busy.
    assert 1.2 < slower < 2.0
    per_call = beside.fleet.node("embed-0").engine.busy_s / len(of(beside, "ingest", "at"))
    assert per_call == pytest.approx(2 * 0.079, rel=0.2)
