"""What is measured: systems, the readings that they return, the measurements that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["subject", "peer", "noise"]


@dataclass(frozen=True)
class Metric:
    """A figure that every system of an experiment reports.

    Args:
        name: key in readings.
        unit: for people, e.g. ``"chunks/s"``.
        better: which way is good.
        statistic: how rounds are summed up; the median shrugs off a neighbour's burst.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    statistic: Literal["mean", "median"] = "median"


@dataclass(frozen=True)
class Reading:
    """One measured call of a system.

    Args:
        values: metric name -> value.
        wall_s: seconds that the measured part took.
        cpu_s: CPU seconds of all processes that did the work; None where it cannot be known.
        detail: what else the raw data should keep (counts, checksums, quantiles).
    """

    values: Mapping[str, float]
    wall_s: float
    cpu_s: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """Something that can be measured again and again.

    Args:
        name: the column's name in reports.
        measure: called with the round number (warm-up rounds are negative).
        role: ``peer`` is what others are divided by; ``noise`` is the peer measured again.
        config: its configuration as it takes it (arguments, environment, files), verbatim.
        version: of the software that is measured.
    """

    name: str
    measure: Callable[[int], Reading]
    role: Role = "subject"
    config: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True)
class Case:
    """Systems that do the same work, interleaved with each other; exactly one is the peer."""

    name: str
    systems: tuple[System, ...]

    @property
    def peer(self) -> System:
        """The system that the others are divided by."""
        return next(system for system in self.systems if system.role == "peer")


@dataclass(frozen=True)
class Measurement:
    """One line of the raw data: a reading, or the error that came instead of it."""

    case: str
    system: str
    role: Role
    round: int
    position: int
    warmup: bool
    started_at: str
    values: Mapping[str, float]
    wall_s: float
    cpu_s: float | None
    detail: Mapping[str, Any]
    error: str | None

    @property
    def counted(self) -> bool:
        """Whether its values enter the summary."""
        return not self.warmup and self.error is None

    def to_json(self) -> dict[str, Any]:
        """Plain values for measurements.jsonl."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Measurement:
        """The inverse of :meth:`to_json`. Raises KeyError when a field is missing."""
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})
