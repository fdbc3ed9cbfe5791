"""A scenario's requests, for the simulator and for the wire: same times, same lengths."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from sage_bench.load.open_loop import Arrival
from sage_bench.load.prompts import Words
from sage_bench.load.request import LoadRequest
from sage_bench.mock_engine.api import OUTPUT_FIELD
from sage_bench.simulation.assembly import source
from sage_bench.simulation.scenario import EmbeddingGroup, ScenarioSpec, WorkloadSpec
from sage_bench.workloads.client_request import ClientRequest
from sage_bench.workloads.sources import OpenLoop
from sage_prefect.common.errors import SettingsError


def check_replayable(spec: ScenarioSpec) -> None:
    """Whether a scenario can run live in the way it is simulated.

    Raises:
        SettingsError: names what cannot, and why.
    """
    reasons: list[str] = []
    for group in spec.engines:
        if isinstance(group, EmbeddingGroup):
            reasons.append(f"engines {group.name!r} embed; only LLM engines are compared")
        elif group.scheduling != "fcfs":
            reasons.append(f"engines {group.name!r}: the gateway sends engines no priority")
        elif group.gpu is not None or group.cold:
            reasons.append(f"engines {group.name!r} share a GPU or start cold")
    for workload in spec.workloads:
        if workload.kind != "chat" or workload.sessions is not None:
            reasons.append(f"workload {workload.name!r} is not of independent chats")
        if workload.arrival.process == "closed" or workload.patience_s is not None:
            reasons.append(f"workload {workload.name!r} reacts to its answers; open loops only")
        if workload.tenants.count != 1:
            reasons.append(f"workload {workload.name!r} has several tenants; live there is one")
    for name, given in (
        ("faults", spec.faults),
        ("tenants", spec.tenants),
        ("bands", spec.bands),
        ("gateways", spec.gateways != 1),
        ("staleness_s", spec.staleness_s),
        ("attempt_timeout_s", spec.attempt_timeout_s != float("inf")),
    ):
        if given:
            reasons.append(f"{name} are not replayed live")
    for policy in spec.policies:
        if policy.use.startswith("baseline:") or policy.tune or policy.engines or policy.options:
            reasons.append(f"policy {policy.label!r} is none of the gateway's, or is tuned")
    if reasons:
        raise SettingsError(
            f"scenario {spec.name!r} cannot run live: {'; '.join(reasons)}.",
            hint="The scenario `live-check` can.",
        )


def requests_of(spec: ScenarioSpec, seed: int, base: Path | None = None) -> list[ClientRequest]:
    """All requests of a scenario by time, exactly as the simulation draws them."""
    streams: list[Iterator[ClientRequest]] = []
    for index, workload in enumerate(spec.workloads):
        made = source(spec, index, workload, seed, base)
        if not isinstance(made, OpenLoop):
            raise RuntimeError("a closed loop passed check_replayable. This is a bug.")
        streams.append(iter(made.next, None))
    return list(heapq.merge(*streams, key=lambda request: request.at))


def arrivals_of(
    requests: Sequence[ClientRequest], spec: ScenarioSpec, seed: int
) -> Iterator[Arrival]:
    """The same requests for the load generator. A prompt's words are its tokens; the answer's
    length goes in a field that only mock engines read: the gateway must not know it."""
    workloads = {workload.name: workload for workload in spec.workloads}
    words, rng = Words(seed), random.Random(seed)
    for request in requests:
        yield request.at, _wire(request, workloads[request.traffic.name], words, rng)


def _wire(
    request: ClientRequest, workload: WorkloadSpec, words: Words, rng: random.Random
) -> LoadRequest:
    traffic = request.traffic
    body: dict[str, Any] = {
        "model": traffic.model,
        "messages": [{"role": "user", "content": words.cut(request.prompt, rng)}],
        OUTPUT_FIELD: request.output,
        "stream": traffic.stream,
    }
    if traffic.stream:
        body["stream_options"] = {"include_usage": True}
    headers: list[tuple[str, str]] = [("x-sage-band", workload.band)]
    if workload.told_slo:
        headers += [
            (name, f"{1000 * seconds:.0f}")
            for name, seconds in (
                ("x-slo-ttft-ms", traffic.slo.ttft_s),
                ("x-slo-tpot-ms", traffic.slo.tpot_s),
            )
            if seconds is not None
        ]
    return LoadRequest(
        "chat",
        orjson.dumps(body),
        stream=traffic.stream,
        band=workload.band,
        prompt_tokens=request.prompt,
        output_tokens=request.output,
        headers=tuple(headers),
    )
