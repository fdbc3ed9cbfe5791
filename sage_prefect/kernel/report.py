"""What a run tells about itself: per operator, per stage, in total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sage_prefect.kernel.sink import Committed


@dataclass
class OperatorReport:
    """Rows and seconds of one operator in one partition (or summed over several)."""

    operator: str
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    seconds: float = 0.0

    def add(self, other: OperatorReport) -> None:
        """Sum ``other`` into this."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dead += other.dead
        self.seconds += other.seconds


@dataclass(frozen=True)
class DeadLetter:
    """A row (or a source part) that was set aside under ``on_error="dead_letter"``."""

    operator: str
    partition: str
    error: str
    row: dict[str, Any] | None = None
    part: str | None = None


@dataclass
class StageReport:
    """One stage of one partition."""

    stage: int
    name: str
    partition: int
    operators: list[OperatorReport]
    seconds: float = 0.0
    worker: str = ""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    reused: bool = False
    retries: int = 0

    @property
    def rows_in(self) -> int:
        """Rows that entered the stage (for a source: rows read)."""
        return self.operators[0].rows_in if self.operators else 0

    @property
    def rows_out(self) -> int:
        """Rows that left it."""
        return self.operators[-1].rows_out if self.operators else 0


@dataclass
class StageSummary:
    """One stage over all partitions."""

    stage: int
    name: str
    partitions: int = 0
    reused: int = 0
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    retries: int = 0
    seconds: list[float] = field(default_factory=list)
    operators: dict[str, OperatorReport] = field(default_factory=dict)

    @property
    def rows_per_s(self) -> float:
        """Rows in per second of task time (not wall clock: partitions overlap)."""
        total = sum(self.seconds)
        return self.rows_in / total if total else 0.0

    def quantile(self, q: float) -> float:
        """Seconds per partition at quantile ``q`` (nearest rank); 0 when nothing ran."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


@dataclass
class RunReport:
    """The outcome of a run.

    ``committed.rows`` equals the rows that reached the sink, and the rows read equal rows
    processed plus dead letters: a runner checks both and fails otherwise.
    """

    pipeline: str
    run_id: str
    seconds: float
    stages: list[StageReport]
    committed: Committed
    partitions: int
    reused_partitions: int = 0
    source_stages: tuple[int, ...] = (0,)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """All rows and parts that were set aside."""
        return [letter for stage in self.stages for letter in stage.dead_letters]

    @property
    def rows_read(self) -> int:
        """Rows that the sources gave in this run, parts of reused partitions included."""
        return sum(stage.rows_in for stage in self.stages if stage.stage in self.source_stages)

    def summary(self) -> list[StageSummary]:
        """Per stage, over all partitions."""
        return summarise(self.stages)

    def operator_seconds(self, name: str) -> float:
        """Seconds of task time that operator ``name`` took, over all partitions."""
        return sum(
            op.seconds for stage in self.stages for op in stage.operators if op.operator == name
        )


def summarise(reports: Iterable[StageReport]) -> list[StageSummary]:
    """Sum partition reports into one row per stage."""
    found: dict[int, StageSummary] = {}
    for report in reports:
        row = found.setdefault(report.stage, StageSummary(report.stage, report.name))
        row.partitions += 1
        row.reused += report.reused
        row.rows_in += report.rows_in
        row.rows_out += report.rows_out
        row.dead += len(report.dead_letters)
        row.retries += report.retries
        if not report.reused:
            row.seconds.append(report.seconds)
        for op in report.operators:
            row.operators.setdefault(op.operator, OperatorReport(op.operator)).add(op)
    return [found[stage] for stage in sorted(found)]
