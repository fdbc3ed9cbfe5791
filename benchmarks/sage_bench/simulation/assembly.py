"""From a scenario, a policy and a seed to a simulation that can run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sage_bench.simulation.baselines import Future
from sage_bench.simulation.cluster import NodeSpec
from sage_bench.simulation.controller import ControllerFactory, controller_factory, foresees
from sage_bench.simulation.embedding_engine import EmbeddingEngineSpec
from sage_bench.simulation.faults import Fault
from sage_bench.simulation.gateway import Journal, Surroundings
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.request_facts import Facts, RequestFacts, TrueFacts, engine_facts
from sage_bench.simulation.scenario import (
    EmbeddingGroup,
    LlmGroup,
    PolicySpec,
    ScenarioSpec,
    WorkloadSpec,
)
from sage_bench.simulation.simulation import Simulation
from sage_bench.simulation.step_profile import embedding_profile, step_profile
from sage_bench.workloads.arrivals import RateSchedule
from sage_bench.workloads.client_request import Slo, Traffic
from sage_bench.workloads.lengths import length_table
from sage_bench.workloads.sessions import Conversations, conversation_requests
from sage_bench.workloads.sources import (
    ClosedLoop,
    EmbeddingCalls,
    Maker,
    OpenLoop,
    chat_maker,
    embedding_maker,
    open_loop,
)
from sage_bench.workloads.tenants import ZipfTenants
from sage_bench.workloads.traces import trace_requests
from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.control_plane.events import Band, BandSpec, EngineSpec, Limits


@dataclass(frozen=True)
class Variant:
    """One way to run a policy; ``of`` names the policy that it stands for once tuned."""

    label: str
    of: str
    use: str
    options: dict[str, Any]
    engines: dict[str, Any]
    without: tuple[str, ...] = ()


def variants(policy: PolicySpec) -> list[Variant]:
    """The combinations of ``tune``; one variant without it.

    Raises:
        SettingsError: an engine key is unknown.
    """
    known = LlmGroup.model_fields
    for name in policy.engines:
        if name not in known:
            raise SettingsError(
                f"policy {policy.label!r}: engines have no key {name!r}.",
                hint=f"{near_name(name, known)}Known: {', '.join(known)}.",
            )
    found = []
    for values in itertools.product(*policy.tune.values()):
        chosen = dict(zip(policy.tune, values, strict=True))
        engines = {k: v for k, v in chosen.items() if k in known}
        options = {k: v for k, v in chosen.items() if k not in known}
        shown = ", ".join(f"{k}={v}" for k, v in chosen.items())
        found.append(
            Variant(
                f"{policy.label} ({shown})" if shown else policy.label,
                policy.label,
                policy.use,
                {**policy.options, **options},
                {**policy.engines, **engines},
                tuple(policy.without),
            )
        )
    return found


def assemble(
    spec: ScenarioSpec,
    variant: Variant,
    seed: int,
    *,
    base: Path | None = None,
    journal: Journal | None = None,
    controllers: ControllerFactory | None = None,
    told: Callable[[EngineSpec], EngineSpec] | None = None,
    facts: Facts | None = None,
) -> Simulation:
    """A simulation of ``spec`` under ``variant``. The same seed gives the same requests.

    Args:
        base: folder that trace files are relative to.
        journal: called with every event that a controller takes.
        controllers: makes the controllers instead of the variant's policy.
        told: changes what the controllers are told of each engine.
        facts: what they are told of requests, instead of what the scenario says.

    Raises:
        SettingsError: a value is wrong.
        UnknownNameError: a profile, a length table or a policy is not known.
    """
    limits = Limits(
        max_queued_requests=spec.limits.max_queued_requests,
        queue_timeout_s=spec.limits.queue_timeout_s,
        max_retries=spec.limits.max_retries,
    )
    make = controllers or controller_factory(
        variant.use, limits, variant.options, seed, lambda: _future(spec, seed, base)
    )
    workloads = {workload.name: workload for workload in spec.workloads}
    noise = np.random.default_rng([seed, 1_000_003])
    nodes = [
        node
        for group in spec.engines
        if group.name not in variant.without
        for node in _nodes(group, variant)
    ]
    if told is not None:
        nodes = [replace(node, spec=told(node.spec)) for node in nodes]
    return Simulation(
        nodes,
        [source(spec, i, w, seed, base) for i, w in enumerate(spec.workloads)],
        make,
        Surroundings(
            network_s=spec.network_ms / 1000,
            gateway_s=spec.gateway_ms / 1000,
            gateways=spec.gateways,
            detection_s=spec.detection_s,
            staleness_s=spec.staleness_s,
            progress_s=spec.progress_s,
            attempt_timeout_s=spec.attempt_timeout_s,
            until_s=spec.duration_s,
            drain_s=spec.drain_s,
        ),
        facts or (TrueFacts if foresees(variant.use) else RequestFacts)(workloads, noise),
        [Fault(f.at_s, f.engine, f.kind, f.for_s, f.factor) for f in spec.faults],
        weights={tenant.name: tenant.weight for tenant in spec.tenants},
        bands=[
            BandSpec(**{**item.model_dump(), "band": Band[item.band.upper()]})
            for item in spec.bands
        ],
        journal=journal,
    )


def _future(spec: ScenarioSpec, seed: int, base: Path | None) -> Future:
    """The embedding calls that the scenario's open loops will make."""
    calls = []
    for index, workload in enumerate(spec.workloads):
        if workload.kind != "embedding":
            continue
        asks = source(spec, index, workload, seed, base)
        while isinstance(asks, OpenLoop) and (request := asks.next()) is not None:
            calls.append((request.at, request.inputs))
    return Future(tuple(sorted(calls)))


def _nodes(group: LlmGroup | EmbeddingGroup, variant: Variant) -> list[NodeSpec]:
    if isinstance(group, EmbeddingGroup):
        profile = embedding_profile(group.profile).scaled(group.speed)
        engine = EmbeddingEngineSpec(profile, group.merging, group.max_batch_tokens)
        return [
            NodeSpec(
                facts := engine_facts(group, i, profile),
                engine,
                gpu=facts.accelerator,
                gpu_share=group.gpu_share,
            )
            for i in range(group.count)
        ]
    try:
        group = LlmGroup.model_validate({**group.model_dump(), **variant.engines})
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"engines of policy {variant.of!r}: {wrong}.") from None
    steps = step_profile(group.profile).scaled(group.speed)
    if group.kv_tokens is not None:
        steps = replace(steps, kv_tokens=group.kv_tokens)
    llm = LlmEngineSpec(steps, group.max_num_batched_tokens, group.max_num_seqs, group.scheduling)
    return [
        NodeSpec(
            facts := engine_facts(group, i, steps),
            llm,
            gpu=facts.accelerator,
            max_waiting=group.max_waiting,
        )
        for i in range(group.count)
    ]


def _traffic(spec: WorkloadSpec) -> Traffic:
    return Traffic(
        spec.name,
        spec.model,
        spec.kind,
        Band[spec.band.upper()],
        spec.stream and spec.kind == "chat",
        Slo(spec.slo.ttft_s, spec.slo.tpot_s, spec.slo.e2e_s),
        spec.patience_s,
    )


def source(
    scenario: ScenarioSpec, index: int, spec: WorkloadSpec, seed: int, base: Path | None
) -> OpenLoop | ClosedLoop:
    """The requests of the scenario's workload number ``index``.

    Raises:
        SettingsError: a value is wrong, or a trace file cannot be read.
        UnknownNameError: a length table is not known.
    """
    # Times and contents from streams of their own: another rate does not change the lengths.
    times, contents = (np.random.default_rng([seed, index, part]) for part in (0, 1))
    traffic = _traffic(spec)
    until = min(scenario.duration_s, spec.end_s or math.inf)
    tenants = ZipfTenants(spec.tenants.count, spec.tenants.zipf, spec.tenants.prefix or spec.name)
    arrival = spec.arrival
    if arrival.process == "trace":
        file = (base or Path()) / arrival.file
        return OpenLoop(
            trace_requests(file, arrival.format, traffic, arrival.speed, spec.start_s, until)
        )
    if arrival.process == "closed":
        return ClosedLoop(
            _maker(spec, traffic, tenants, contents),
            arrival.outstanding,
            start_s=spec.start_s,
            until_s=until,
            think_s=arrival.think_s,
        )
    schedule, cv = _schedule(arrival, times, until)
    if spec.sessions is not None:
        shape = Conversations(**spec.sessions.model_dump())
        return OpenLoop(
            conversation_requests(
                traffic, schedule, shape, length_table(spec.lengths), tenants, times, until
            )
        )
    make = _maker(spec, traffic, tenants, contents)
    return open_loop(make, schedule, cv, times, start_s=spec.start_s, until_s=until)


def _maker(
    spec: WorkloadSpec, traffic: Traffic, tenants: ZipfTenants, rng: np.random.Generator
) -> Maker:
    if spec.kind == "embedding":
        return embedding_maker(traffic, EmbeddingCalls(**spec.calls.model_dump()), tenants, rng)
    table = length_table(spec.lengths)
    return chat_maker(traffic, table, tenants, rng, scale=spec.length_scale)


def _schedule(arrival: Any, rng: np.random.Generator, until_s: float) -> tuple[RateSchedule, float]:
    kinds: dict[str, Callable[[], tuple[RateSchedule, float]]] = {
        "poisson": lambda: (RateSchedule.constant(arrival.rate), 1.0),
        "gamma": lambda: (
            RateSchedule.wandering(arrival.rate, arrival.wander, 10.0, until_s, rng)
            if arrival.wander
            else RateSchedule.constant(arrival.rate),
            arrival.cv,
        ),
        "bursts": lambda: (
            RateSchedule.square(arrival.low, arrival.high, arrival.low_s, arrival.high_s),
            arrival.cv,
        ),
        "flash": lambda: (
            RateSchedule.flash(arrival.rate, arrival.factor, arrival.at_s, arrival.for_s),
            1.0,
        ),
        "diurnal": lambda: (
            RateSchedule.diurnal(arrival.rate, arrival.amplitude, arrival.period_s),
            1.0,
        ),
    }
    return kinds[arrival.process]()
