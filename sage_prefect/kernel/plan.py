"""The plan of a run: stages (fused operators) and partitions (groups of source parts)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sage_prefect.kernel.operator import Operator, OperatorContext
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.sink import Sink
from sage_prefect.kernel.source import Source, SourcePart

OnError = Literal["fail", "retry", "dead_letter"]


@dataclass(frozen=True)
class Step:
    """One operator in the graph, with what its step says of it.

    Args:
        declared_at: ``file:line`` of the call that added it.
    """

    operator: Operator
    resources: Resources = field(default_factory=Resources)
    on_error: OnError = "retry"
    declared_at: str = ""


@dataclass(frozen=True)
class Stage:
    """Operators that run in one task per partition. The last stage also holds the sink."""

    index: int
    steps: tuple[Step, ...]
    resources: Resources
    source: Source | None = None
    source_on_error: OnError = "retry"
    sink: Sink | None = None

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Source, operators and sink in the order that a row meets them."""
        ends = (self.source,) if self.source else ()
        return (
            *ends,
            *(step.operator for step in self.steps),
            *((self.sink,) if self.sink else ()),
        )

    @property
    def name(self) -> str:
        """Names of its operators joined: ``read+chunk+embed``."""
        return "+".join(operator.name for operator in self.operators)

    @property
    def retry_on(self) -> tuple[type[BaseException], ...]:
        """Exception types that a retry may cure."""
        return tuple(dict.fromkeys(kind for op in self.operators for kind in op.retry_on))

    @property
    def on_error(self) -> OnError:
        """``fail`` if any step says so (then the task is not retried), else ``retry``."""
        wishes = {self.source_on_error if self.source else "retry"}
        wishes |= {step.on_error for step in self.steps}
        return "fail" if "fail" in wishes else "retry"


@dataclass(frozen=True)
class Partition:
    """A group of source parts that passes through all stages together.

    Args:
        index, count: position; shown as ``[index/count]``, counted from 1.
        parts: what to read.
        keys: one content key per stage: of the input, and of the code up to and with that stage.
    """

    index: int
    count: int
    parts: tuple[SourcePart, ...]
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        """Content key of the finished partition: that of the last stage."""
        return self.keys[-1]

    @property
    def label(self) -> str:
        """For people: ``3/8 (a.md .. c.md)``."""
        names = [part.label for part in self.parts]
        span = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        return f"{self.index + 1}/{self.count} ({span})"


@dataclass(frozen=True)
class Plan:
    """What a runner executes. Picklable; holds no data.

    Args:
        before: the chains that must have run before this one: each ends in an exchange. In an order
            in which they can run; each has an empty ``before`` of its own.
        first_stage: number of this chain's first stage among those of the whole run.
    """

    pipeline: str
    stages: tuple[Stage, ...]
    partitions: tuple[Partition, ...]
    context: OperatorContext = field(default_factory=OperatorContext)
    estimate_s: float = 0.0
    columns: tuple[tuple[str, ...] | None, ...] = field(default=())
    before: tuple[Plan, ...] = ()
    first_stage: int = 0

    @property
    def chains(self) -> tuple[Plan, ...]:
        """All chains of the run, in the order in which they run; the last one is this."""
        return (*self.before, self)

    @property
    def tasks(self) -> int:
        """Task runs that all chains make."""
        return sum(len(chain.stages) * len(chain.partitions) for chain in self.chains)

    @property
    def key(self) -> str:
        """Content key of the whole run."""
        from sage_prefect.kernel.fingerprint import fingerprint

        return fingerprint([self.pipeline, [partition.key for partition in self.partitions]])

    def task_name(self, stage: Stage, partition: Partition) -> str:
        """``chunk+embed[3/8]``."""
        return f"{stage.name}[{partition.index + 1}/{partition.count}]"
