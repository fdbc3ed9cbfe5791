"""What the scheduler is told of requests and engines: its own schema, and no more than a gateway
could know. The answer's length is not among it, only what was learned from earlier answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from sage_bench.simulation.scenario import EmbeddingGroup, LlmGroup, WorkloadSpec
from sage_bench.simulation.step_profile import EmbeddingProfile, StepProfile
from sage_bench.workloads.client_request import ClientRequest
from sage_prefect.control_plane.events import EngineProfile, EngineSpec, RequestInfo
from sage_prefect.control_plane.length_estimates import OutputLengths

_BYTES_PER_TOKEN = 4


class Facts(Protocol):
    """What gateways are told of requests."""

    def describe(self, request_id: str, request: ClientRequest, now: float) -> RequestInfo:
        """The request as a gateway sees it at ``now``."""

    def learn(self, request: ClientRequest) -> None:
        """A request's answer has come whole."""


class RequestFacts:
    """Describes requests to the control plane, and learns how long answers are.

    A workload's ``estimate_error`` is the sigma of a lognormal error on the prompt's length: the
    gateway runs no tokenizer. The output's estimate is the running 0.7 quantile of the tenant's
    finished answers, as the gateway's classifier learns it.

    Args:
        workloads: by name.
        noise: of the estimates.
    """

    def __init__(self, workloads: Mapping[str, WorkloadSpec], noise: np.random.Generator) -> None:
        self._workloads = workloads
        self._noise = noise
        self._outputs = OutputLengths()

    def describe(self, request_id: str, request: ClientRequest, now: float) -> RequestInfo:
        """The request as a gateway sees it at ``now``."""
        traffic = request.traffic
        workload = self._workloads[traffic.name]
        prompt = request.prompt
        if workload.estimate_error:
            error = math.exp(workload.estimate_error * float(self._noise.standard_normal()))
            prompt = max(1, round(prompt * error))
        slo = traffic.slo
        return RequestInfo(
            request_id,
            traffic.model,
            traffic.kind,
            request.tenant,
            traffic.band,
            traffic.stream,
            _BYTES_PER_TOKEN * request.prompt,
            prompt,
            None,
            None if traffic.patience_s is None else now + traffic.patience_s,
            request.session,
            # An embedding's first byte is its whole answer.
            (slo.ttft_s or (slo.e2e_s if request.inputs else None)) if workload.told_slo else None,
            slo.tpot_s if workload.told_slo else None,
            self._outputs.estimate(request.tenant, traffic.model),
            request.chain,
            request.inputs,
            # All simulated calls have the same options.
            merge_key=1 if request.inputs else None,
        )

    def learn(self, request: ClientRequest) -> None:
        """Take a finished answer's length into the estimate."""
        self._outputs.learn(request.tenant, request.traffic.model, request.output)


class TrueFacts(RequestFacts):
    """What hindsight tells: the answer's true length instead of its estimate."""

    def describe(self, request_id: str, request: ClientRequest, now: float) -> RequestInfo:
        """The request, with the length of its answer."""
        return replace(super().describe(request_id, request, now), output_estimate=request.output)


def engine_facts(
    group: LlmGroup | EmbeddingGroup, index: int, profile: StepProfile | EmbeddingProfile
) -> EngineSpec:
    """An engine's description for the control plane. ``told_profile: false`` keeps its constants
    from it, ``told_speed: false`` only its own speed (it is told the profile of its class)."""
    name = f"{group.name}-{index}"
    if isinstance(profile, EmbeddingProfile):
        prior = EngineProfile(s0=profile.s0, alpha=profile.alpha, source=profile.source)
    else:
        prior = EngineProfile(profile.c0, profile.a, profile.b, profile.g, source=profile.source)
    if not group.told_speed:
        speed = group.speed
        prior = EngineProfile(
            prior.c0 * speed,
            prior.a * speed,
            prior.b * speed,
            prior.g * speed,
            prior.s0 * speed,
            prior.alpha * speed,
            prior.source,
        )
    embedding = isinstance(group, EmbeddingGroup)
    return EngineSpec(
        name,
        (group.model,),
        group.window,
        driver="sentence-transformers" if embedding else "vllm",
        device=group.device if isinstance(group, EmbeddingGroup) else "cuda",
        price=group.price,
        profile=prior if group.told_profile else None,
        kv_tokens=profile.kv_tokens if isinstance(profile, StepProfile) else None,
        max_batch_tokens=group.max_batch_tokens
        if isinstance(group, EmbeddingGroup)
        else group.max_num_batched_tokens,
        padded=isinstance(profile, EmbeddingProfile) and profile.padded,
        cold=group.cold,
        accelerator=f"{group.gpu}-{index}" if group.gpu else None,
    )
