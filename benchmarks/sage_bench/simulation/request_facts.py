"""What the scheduler is told of requests and engines: its own schema, and no more than a gateway
could know. The answer's length is never among it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from sage_bench.simulation.scenario import EmbeddingGroup, LlmGroup, WorkloadSpec
from sage_bench.simulation.step_profile import EmbeddingProfile, StepProfile
from sage_bench.workloads.client_request import ClientRequest
from sage_prefect.control_plane.events import EngineSpec, RequestInfo


def request_facts(
    workloads: Mapping[str, WorkloadSpec], noise: np.random.Generator
) -> Callable[[str, ClientRequest, float], RequestInfo]:
    """Makes a request's description for the control plane.

    A workload's ``estimate_error`` is the sigma of a lognormal error on the prompt's length: the
    gateway runs no tokenizer.
    """

    def describe(request_id: str, request: ClientRequest, now: float) -> RequestInfo:
        traffic = request.traffic
        workload = workloads[traffic.name]
        prompt = request.prompt
        if workload.estimate_error:
            error = math.exp(workload.estimate_error * float(noise.standard_normal()))
            prompt = max(1, round(prompt * error))
        return RequestInfo(
            request_id,
            traffic.model,
            traffic.kind,
            request.tenant,
            traffic.band,
            traffic.stream,
            4 * request.prompt,
            prompt,
            None,
            None,
            request.session,
        )

    return describe


def engine_facts(
    group: LlmGroup | EmbeddingGroup, index: int, profile: StepProfile | EmbeddingProfile
) -> EngineSpec:
    """An engine's description for the control plane."""
    name = f"{group.name}-{index}"
    if isinstance(group, EmbeddingGroup):
        return EngineSpec(name, (group.model,), group.window, "sentence-transformers", group.device)
    return EngineSpec(name, (group.model,), group.window, "vllm", "gpu")
