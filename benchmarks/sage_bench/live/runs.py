"""One run of a scenario under one policy: simulated, or live through the gateway."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_bench.live.observation import Observation, of_records, of_simulation
from sage_bench.live.replay import arrivals_of
from sage_bench.live.stack import DEVICE, DRIVER, LiveStack
from sage_bench.live.wire_facts import WireFacts
from sage_bench.load.client import Client, ClientOptions
from sage_bench.load.open_loop import OpenLoop
from sage_bench.load.record import write_records
from sage_bench.load.run import Bounds, LoadRun
from sage_bench.load.session import quiet_collector, run_in_loop
from sage_bench.load.summary import summarise
from sage_bench.load.target import Target
from sage_bench.simulation.assembly import assemble, variants
from sage_bench.simulation.controller import controller_factory
from sage_bench.simulation.gateway import Journal
from sage_bench.simulation.scenario import PolicySpec, ScenarioSpec
from sage_bench.workloads.client_request import ClientRequest
from sage_prefect.control_plane.events import EngineSpec, Limits
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.platform.event_log import EventLogWriter
from sage_prefect.platform.recorded_manager import settings_of

GATEWAY_SEED = 0
"""A gateway's manager always breaks ties with this seed."""


@dataclass(frozen=True)
class LiveRun:
    """A live run's requests, the load generator's summary, the mock engines' own state."""

    observation: Observation
    summary: dict[str, Any]
    engines: list[dict[str, Any]]

    @property
    def valid(self) -> bool:
        """Whether the load generator kept its schedule."""
        return bool(self.summary["valid"])


def as_the_gateway_is_told(spec: EngineSpec) -> EngineSpec:
    """What a gateway's configuration says of an engine: no profile, no KV size, no budget."""
    return EngineSpec(spec.name, spec.models, spec.max_concurrency, DRIVER, DEVICE)


def simulate(
    spec: ScenarioSpec,
    policy: PolicySpec,
    requests: Sequence[ClientRequest],
    seed: int,
    base: Path | None = None,
    *,
    journal: Journal | None = None,
    log: Path | None = None,
) -> Observation:
    """The scenario in virtual time; its control plane knows what a live gateway's knows.

    Args:
        requests: the scenario's with this seed.
        journal: is told of every event of the control plane.
        log: an event log of it, instead; its folder is made.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        manager = ControlPlaneManager(policy.use, _limits(spec), seed=GATEWAY_SEED)
        with EventLogWriter(log, settings=settings_of(manager), rotate=False) as writer:
            return simulate(
                spec,
                policy,
                requests,
                seed,
                base,
                journal=lambda _, event, now, actions: writer.record(event, now, actions),
            )
    simulation = assemble(
        spec,
        variants(policy)[0],
        seed,
        base=base,
        journal=journal,
        controllers=controller_factory(policy.use, _limits(spec), seed=GATEWAY_SEED),
        told=as_the_gateway_is_told,
        facts=WireFacts(list(arrivals_of(requests, spec, seed))),
    )
    collecting = gc.isenabled()
    gc.disable()
    try:
        return of_simulation(simulation.run())
    finally:
        if collecting:
            gc.enable()


def _limits(spec: ScenarioSpec) -> Limits:
    return Limits(
        max_queued_requests=spec.limits.max_queued_requests,
        queue_timeout_s=spec.limits.queue_timeout_s,
        max_retries=spec.limits.max_retries,
    )


def run_live(
    spec: ScenarioSpec,
    policy: PolicySpec,
    requests: Sequence[ClientRequest],
    seed: int,
    folder: Path,
    *,
    record: bool = False,
) -> LiveRun:
    """The same requests in real time, through a gateway of their own in front of mock engines.

    Args:
        folder: for logs, configuration and ``requests.parquet``.
        record: the gateway's event log goes there, too.

    Raises:
        BenchmarkError: a process does not start.
    """
    with LiveStack(spec, policy.use, folder, record=record) as stack, quiet_collector():
        run = run_in_loop(_send(spec, requests, seed, stack.url))
        engines = stack.engine_states()
    summary = summarise(run)
    write_records(folder / "requests.parquet", run.records, summary)
    workloads = [request.traffic.name for request in requests]
    return LiveRun(of_records(run.records, workloads), summary, engines)


async def _send(
    spec: ScenarioSpec, requests: Sequence[ClientRequest], seed: int, url: str
) -> LoadRun:
    bounds = Bounds(requests=len(requests), drain_s=spec.drain_s)
    async with Client([Target.parse(url)], ClientOptions()) as client:
        return await OpenLoop(client, arrivals_of(requests, spec, seed), bounds).run()
