"""The engines of a simulation, each with the life that faults give it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from sage_bench.simulation.embedding_engine import EmbeddingEngine, EmbeddingEngineSpec
from sage_bench.simulation.flight import Job
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineGauges, EngineSpec

AnyEngine: TypeAlias = LlmEngine | EmbeddingEngine


@dataclass(frozen=True)
class NodeSpec:
    """One engine of a cluster.

    Args:
        spec: what the scheduler is told.
        engine: what it is in truth.
        gpu: name of the device; an LLM and an embedding engine of one device share it.
        gpu_share: the embedding engine's share of the device while both are busy.
        max_waiting: above this it answers 503; None: never.
    """

    spec: EngineSpec
    engine: LlmEngineSpec | EmbeddingEngineSpec
    gpu: str | None = None
    gpu_share: float = 0.5
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gpu_share < 1:
            raise SettingsError(f"engine {self.spec.name!r}: gpu_share must be between 0 and 1.")


@dataclass(slots=True, eq=False)
class Node:
    """An engine while it runs."""

    index: int
    spec: NodeSpec
    engine: AnyEngine
    up: bool = True
    refusing: bool = False
    """Answers 503 to everything new (a fault)."""
    slowdown: float = 1.0
    neighbour: Node | None = None
    """The engine of the other kind on the same device."""
    armed_at: float = math.inf
    """Time of the wake-up that is on its way."""
    inside: dict[str, Job] = field(default_factory=dict)
    """Everything in it, by key."""

    @property
    def name(self) -> str:
        return self.spec.spec.name

    def restart(self) -> None:
        """Begin anew, empty."""
        self.engine = make_engine(self.spec.engine)
        self.apply_stretch(0.0)

    def apply_stretch(self, now: float) -> None:
        """Let slow-down and the neighbour's load act from the next step on.

        The device is split by time: while both are busy the embedding engine gets ``gpu_share`` of
        it, so that what one gains the other loses.
        """
        stretch = self.slowdown
        other = self.neighbour
        if other is not None and other.engine.running:
            embedding = isinstance(self.engine, EmbeddingEngine)
            stretch /= self.spec.gpu_share if embedding else 1 - other.spec.gpu_share
        if isinstance(self.engine, LlmEngine):
            self.engine.set_stretch(stretch, now)
        else:
            self.engine.stretch = stretch

    def gauges(self) -> EngineGauges:
        """What ``/metrics`` would say now."""
        engine = self.engine
        if isinstance(engine, EmbeddingEngine):
            return EngineGauges(float(engine.running), float(engine.waiting))
        return EngineGauges(
            float(engine.running),
            float(engine.waiting),
            1 - engine.free_tokens / engine.spec.profile.kv_tokens,
            float(engine.preemptions),
        )


def make_engine(spec: LlmEngineSpec | EmbeddingEngineSpec) -> AnyEngine:
    """An empty engine."""
    return LlmEngine(spec) if isinstance(spec, LlmEngineSpec) else EmbeddingEngine(spec)


def make_nodes(specs: list[NodeSpec]) -> list[Node]:
    """The cluster's engines, neighbours joined.

    Raises:
        SettingsError: two engines of one name, or more than one of a kind on a device.
    """
    nodes: list[Node] = []
    names: set[str] = set()
    devices: dict[tuple[str, bool], Node] = {}
    for index, spec in enumerate(specs):
        if spec.spec.name in names:
            raise SettingsError(f"two engines are named {spec.spec.name!r}.")
        names.add(spec.spec.name)
        node = Node(index, spec, make_engine(spec.engine), up=not spec.spec.cold)
        nodes.append(node)
        if spec.gpu is None:
            continue
        is_llm = isinstance(spec.engine, LlmEngineSpec)
        if (spec.gpu, is_llm) in devices:
            raise SettingsError(f"device {spec.gpu!r} has two engines of one kind.")
        devices[spec.gpu, is_llm] = node
        other = devices.get((spec.gpu, not is_llm))
        if other is not None:
            node.neighbour, other.neighbour = other, node
    return nodes
