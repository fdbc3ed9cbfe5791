"""A scenario: engines, workloads, faults, and the policies to compare. The shape of the YAML file.

Keys are strict: an unknown one is an error that names the nearest known one. Times are seconds
unless the name says otherwise, rates requests per second, lengths tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sage_bench.simulation.faults import FaultKind


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LlmGroup(_Spec):
    """``count`` equal LLM engines, named ``<name>-0``, ``<name>-1``..."""

    kind: Literal["llm"] = "llm"
    name: str = "llm"
    count: int = Field(1, ge=1)
    model: str = "chat"
    profile: str = "h100-70b"
    speed: float = Field(1.0, gt=0)
    window: int = Field(256, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    kv_tokens: int | None = Field(None, ge=1)
    max_waiting: int | None = Field(None, ge=0)
    gpu: str | None = None
    told_profile: bool = True
    told_speed: bool = True
    cold: bool = False
    price: float = Field(1.0, gt=0)


class EmbeddingGroup(_Spec):
    """``count`` equal embedding engines; ``gpu: NAME`` puts the i-th beside the i-th LLM engine of
    a group that names the same GPU."""

    kind: Literal["embedding"]
    name: str = "embed"
    count: int = Field(1, ge=1)
    model: str = "embed"
    profile: str = "gpu-ragged"
    speed: float = Field(1.0, gt=0)
    window: int = Field(8, ge=1)
    merging: bool = False
    max_batch_tokens: int = Field(8192, ge=1)
    gpu: str | None = None
    gpu_share: float = Field(0.5, gt=0, lt=1)
    device: Literal["cuda", "cpu"] = "cuda"
    told_profile: bool = True
    told_speed: bool = True
    cold: bool = False
    price: float = Field(1.0, gt=0)


class Poisson(_Spec):
    process: Literal["poisson"] = "poisson"
    rate: float = Field(gt=0)


class Gamma(_Spec):
    """Gaps of coefficient of variation ``cv``; ``wander``: sd of a slow lognormal drift."""

    process: Literal["gamma"]
    rate: float = Field(gt=0)
    cv: float = Field(1.2, ge=0)
    wander: float = Field(0.0, ge=0)


class Bursts(_Spec):
    """A square wave; also the swings of a mix."""

    process: Literal["bursts"]
    low: float = Field(ge=0)
    high: float = Field(gt=0)
    low_s: float = Field(gt=0)
    high_s: float = Field(gt=0)
    cv: float = Field(1.0, ge=0)


class Flash(_Spec):
    process: Literal["flash"]
    rate: float = Field(gt=0)
    factor: float = Field(4.0, gt=0)
    at_s: float = Field(gt=0)
    for_s: float = Field(30.0, gt=0)


class Diurnal(_Spec):
    process: Literal["diurnal"]
    rate: float = Field(gt=0)
    amplitude: float = Field(0.5, ge=0, le=1)
    period_s: float = Field(3600.0, gt=0)


class Closed(_Spec):
    process: Literal["closed"]
    outstanding: int = Field(ge=1)
    think_s: float = Field(0.0, ge=0)


class Trace(_Spec):
    """Times and lengths of a trace file; ``speed`` 2 replays it in half the time."""

    process: Literal["trace"]
    file: str
    format: Literal["azure", "mooncake", "burstgpt"]
    speed: float = Field(1.0, gt=0)


ArrivalSpec = Annotated[
    Poisson | Gamma | Bursts | Flash | Diurnal | Closed | Trace, Field(discriminator="process")
]


class Tenants(_Spec):
    count: int = Field(1, ge=1)
    zipf: float = Field(1.2, ge=0)
    prefix: str | None = None


class Sessions(_Spec):
    """Conversations; see :class:`sage_bench.workloads.sessions.Conversations`."""

    one_turn: float = 0.69
    mean_more_turns: float = 2.03
    gap_median_s: float = 123.0
    gap_sigma: float = 1.06
    turn_tokens: float = 400.0
    system_prompts: int = 1
    system_tokens: int = 512
    max_prompt: int = 120_000


class Calls(_Spec):
    """Embedding calls; see :class:`sage_bench.workloads.sources.EmbeddingCalls`."""

    query_share: float = 1.0
    inputs_min: int = 64
    inputs_max: int = 2048
    tail: float = 1.2


class SloSpec(_Spec):
    ttft_s: float | None = Field(None, gt=0)
    tpot_s: float | None = Field(None, gt=0)
    e2e_s: float | None = Field(None, gt=0)


class WorkloadSpec(_Spec):
    """One kind of traffic. ``told_slo: false`` keeps the SLO from the scheduler."""

    name: str
    model: str = "chat"
    kind: Literal["chat", "embedding"] = "chat"
    band: Literal["critical", "interactive", "standard", "batch"] = "interactive"
    arrival: ArrivalSpec
    lengths: str = "azure-conv"
    length_scale: float = Field(1.0, gt=0)
    tenants: Tenants = Tenants()
    sessions: Sessions | None = None
    calls: Calls = Calls()
    slo: SloSpec = SloSpec()
    stream: bool = True
    told_slo: bool = True
    estimate_error: float = Field(0.0, ge=0)
    patience_s: float | None = Field(None, gt=0)
    start_s: float = Field(0.0, ge=0)
    end_s: float | None = Field(None, gt=0)


class PolicySpec(_Spec):
    """A policy or a baseline, with the engines it needs.

    ``engines`` overrides keys of every LLM group; ``without`` leaves engine groups out. ``tune``
    gives lists for such keys or options: each combination runs, and the best stands for the
    policy: the one with the highest ``best_by`` (the scenario's, unless the policy has its own)
    among those whose mean figures reach ``floor``, or among all if none does.
    """

    use: str
    name: str | None = None
    options: dict[str, Any] = {}
    engines: dict[str, Any] = {}
    tune: dict[str, list[Any]] = {}
    without: list[str] = []
    best_by: str | None = None
    floor: dict[str, float] = {}

    @property
    def label(self) -> str:
        return self.name or self.use.removeprefix("baseline:")


class FaultSpec(_Spec):
    at_s: float = Field(ge=0)
    engine: str
    kind: FaultKind
    for_s: float = Field(float("inf"), gt=0)
    factor: float = Field(0.5, gt=0)


class TenantWeight(_Spec):
    name: str
    weight: float = Field(1.0, gt=0)


class BandPromise(_Spec):
    """What differs from the control plane's own promises of a band."""

    band: Literal["critical", "interactive", "standard", "batch"]
    ttft_slo_s: float | None = Field(None, gt=0)
    tpot_slo_s: float | None = Field(None, gt=0)
    min_share: float = Field(0.0, ge=0, le=1)
    age_limit_s: float | None = Field(None, gt=0)
    reject_share: float | None = Field(None, gt=0)


class LimitSpec(_Spec):
    max_queued_requests: int = Field(1_000_000, ge=1)
    queue_timeout_s: float = Field(3600.0, gt=0)
    max_retries: int = Field(2, ge=0)


class ScenarioSpec(_Spec):
    """The whole file."""

    name: str
    about: str = ""
    duration_s: float = Field(300.0, gt=0)
    warmup_s: float = Field(60.0, ge=0)
    drain_s: float = Field(60.0, ge=0)
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    engines: list[Annotated[LlmGroup | EmbeddingGroup, Field(discriminator="kind")]] = Field(
        min_length=1
    )
    workloads: list[WorkloadSpec] = Field(min_length=1)
    policies: list[PolicySpec] = Field(min_length=1)
    faults: list[FaultSpec] = []
    tenants: list[TenantWeight] = []
    bands: list[BandPromise] = []
    limits: LimitSpec = LimitSpec()
    network_ms: float = Field(0.5, ge=0)
    gateway_ms: float = Field(0.0, ge=0)
    gateways: int = Field(1, ge=1)
    detection_s: float = Field(1.0, ge=0)
    staleness_s: float = Field(0.0, ge=0)
    progress_s: float = Field(0.0, ge=0)
    attempt_timeout_s: float = Field(float("inf"), gt=0)
    best_by: str | None = None

    @field_validator("policies", mode="before")
    @classmethod
    def _names_are_policies(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"use": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("engines", mode="before")
    @classmethod
    def _llm_by_default(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"kind": "llm", **item} if isinstance(item, dict) else item for item in value]
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ScenarioSpec:
        if self.warmup_s >= self.duration_s:
            raise ValueError(f"warmup_s {self.warmup_s} must be below duration_s {self.duration_s}")
        served = {group.model for group in self.engines}
        for workload in self.workloads:
            if workload.model not in served:
                raise ValueError(
                    f"workload {workload.name!r} asks for model {workload.model!r}, which no "
                    f"engine serves (served: {', '.join(sorted(served))})"
                )
        for what, names in (
            ("workload", [w.name for w in self.workloads]),
            ("policy", [p.label for p in self.policies]),
            ("engine group", [g.name for g in self.engines]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two of the {what} entries are named {name!r}")
        return self
