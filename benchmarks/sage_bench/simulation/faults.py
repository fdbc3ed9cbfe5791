"""What goes wrong with an engine, and when it is well again."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, replace
from typing import Literal

from sage_bench.simulation.cluster import Node
from sage_bench.simulation.llm_engine import LlmEngine
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineState

FaultKind = Literal["crash", "slow", "hang", "refuse", "start", "fast", "resume", "accept"]
"""``start``, ``fast``, ``resume``, ``accept`` end ``crash``, ``slow``, ``hang``, ``refuse``."""


@dataclass(frozen=True)
class Fault:
    """One fault of one engine, or of all whose name matches a pattern.

    Args:
        at_s: when.
        engine: name, or a pattern such as ``llm-*``.
        kind: ``crash`` (all inside is lost, cold start after ``for_s``), ``slow`` (iterations take
            ``1/factor`` of the time), ``hang`` (no step starts), ``refuse`` (503 for all that is
            new), ``start`` (a cold engine comes up).
        for_s: how long; inf: for good.
        factor: speed while ``slow``.

    Raises:
        SettingsError: a value is out of range.
    """

    at_s: float
    engine: str
    kind: FaultKind
    for_s: float = math.inf
    factor: float = 0.5

    def __post_init__(self) -> None:
        if not (self.at_s >= 0 and self.for_s > 0 and 0 < self.factor < math.inf):
            raise SettingsError(
                f"fault {self.kind!r} of {self.engine!r}: at_s={self.at_s} must be at least 0, "
                f"for_s={self.for_s} and factor={self.factor} above 0."
            )
        if self.kind == "hang" and self.for_s == math.inf:
            raise SettingsError(
                f"fault 'hang' of {self.engine!r} needs for_s.", hint="For good: use crash."
            )

    def hits(self, engine: str) -> bool:
        """Whether this engine is meant."""
        return fnmatch.fnmatchcase(engine, self.engine)

    @property
    def loses_work(self) -> bool:
        """Whether all that is inside the engine is lost."""
        return self.kind == "crash"

    @property
    def state(self) -> EngineState | None:
        """What probes will find; None: they notice nothing."""
        if self.kind == "crash":
            return EngineState.DOWN
        if self.kind == "hang":
            return EngineState.SUSPECT
        return EngineState.READY if self.kind in ("start", "resume") else None

    def apply(self, node: Node, now: float) -> Fault | None:
        """Act on an engine; returns what ends the fault."""
        engine = node.engine
        after: FaultKind | None = None
        if self.kind == "crash":
            node.up, after = False, "start"
            engine.crash()
        elif self.kind == "start":
            if not node.up:
                node.up = True
                node.restart()
        elif self.kind in ("slow", "fast"):
            node.slowdown = 1 / self.factor if self.kind == "slow" else 1.0
            node.apply_stretch(now)
            after = "fast" if self.kind == "slow" else None
        elif self.kind == "hang":
            until, after = now + self.for_s, "resume"
            if isinstance(engine, LlmEngine):
                engine.hold(until, now)
            else:
                engine.hold(until)
        elif self.kind in ("refuse", "accept"):
            node.refusing = self.kind == "refuse"
            after = "accept" if self.kind == "refuse" else None
        if after is None or self.for_s == math.inf:
            return None
        return replace(self, at_s=now + self.for_s, engine=node.name, kind=after, for_s=math.inf)
