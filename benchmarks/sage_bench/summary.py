"""From raw measurements to the figures of a report: one table per case and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_bench.claims import Claim, Outcome, judge
from sage_bench.stats import Interval, interval, paired_ratio
from sage_bench.system import Measurement, Metric, Role

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One system's figures in one table.

    ``value`` is the metric's statistic over the counted rounds; ``ratio`` the same divided by the
    peer's, over the rounds that both finished. Both are None when no round was finished.
    """

    system: str
    role: Role
    rounds: int
    failures: int
    value: Interval | None
    mean: float | None
    median: float | None
    minimum: float | None
    maximum: float | None
    cpu_s: float | None
    ratio: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "value": self.value.to_json() if self.value else None,
            "ratio": self.ratio.to_json() if self.ratio else None,
        }


@dataclass(frozen=True)
class Table:
    """All systems of a case by one metric."""

    case: str
    metric: Metric
    peer: str
    rows: tuple[Row, ...]

    def row(self, system: str) -> Row | None:
        """The row of a system."""
        return next((row for row in self.rows if row.system == system), None)

    @property
    def noise(self) -> Interval | None:
        """The peer's ratio to itself (A/A)."""
        return next((row.ratio for row in self.rows if row.role == "noise"), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        metric = self.metric
        return {
            "case": self.case,
            "metric": metric.name,
            "unit": metric.unit,
            "better": metric.better,
            "statistic": metric.statistic,
            "peer": self.peer,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Summary:
    """What a run found; ``failures`` counts the measurements of counted rounds that failed."""

    uid: str
    experiment: str
    title: str
    tables: tuple[Table, ...]
    outcomes: tuple[Outcome, ...]
    failures: int

    def to_json(self) -> dict[str, Any]:
        """Content of summary.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "uid": self.uid,
            "exp": self.experiment,
            "title": self.title,
            "failures": self.failures,
            "tables": [table.to_json() for table in self.tables],
            "claims": [outcome.to_json() for outcome in self.outcomes],
        }


def summarise(
    uid: str,
    experiment: str,
    title: str,
    metrics: Sequence[Metric],
    claims: Sequence[Claim],
    measurements: Iterable[Measurement],
    seed: int = 0,
) -> Summary:
    """Compute every figure. The same measurements and seed always give the same summary.

    Raises:
        BenchmarkError: a peer's value of zero, where a ratio is wanted.
    """
    kept = [m for m in measurements if not m.warmup]
    tables = [
        _table(case, metric, [m for m in kept if m.case == case], seed)
        for case in dict.fromkeys(m.case for m in kept)
        for metric in metrics
        if _reports(metric, [m for m in kept if m.case == case])
    ]
    outcomes = [_outcome(claim, tables) for claim in claims]
    failures = sum(m.error is not None for m in kept)
    return Summary(uid, experiment, title, tuple(tables), tuple(outcomes), failures)


def _reports(metric: Metric, measurements: Sequence[Measurement]) -> bool:
    """Whether a case reports the metric: another case of the experiment may have other ones. Where
    every measurement failed nobody knows, and the table shows it."""
    counted = [m for m in measurements if m.counted]
    return not counted or any(metric.name in m.values for m in counted)


def _table(case: str, metric: Metric, measurements: Sequence[Measurement], seed: int) -> Table:
    by_system: dict[str, list[Measurement]] = {}
    for measurement in sorted(measurements, key=lambda m: (m.round, m.position)):
        by_system.setdefault(measurement.system, []).append(measurement)
    peer = next(name for name, found in by_system.items() if found[0].role == "peer")
    # Peer, its noise, then the others in the order of the first round.
    rank = {"peer": 0, "noise": 1, "subject": 2}
    names = sorted(by_system, key=lambda name: rank[by_system[name][0].role])
    rows = [_row(metric, by_system[name], by_system[peer], seed) for name in names]
    return Table(case, metric, peer, tuple(rows))


def _row(metric: Metric, own: Sequence[Measurement], peer: Sequence[Measurement], seed: int) -> Row:
    mine = _by_round(metric, own)
    theirs = _by_round(metric, peer)
    values = list(mine.values())
    shared = sorted(set(mine) & set(theirs))
    cpu = [m.cpu_s for m in own if m.counted and m.cpu_s is not None]
    ratio = None
    if shared and own is not peer and all(theirs[r] > 0 for r in shared):
        ratio = paired_ratio(
            [mine[r] for r in shared], [theirs[r] for r in shared], metric.statistic, seed=seed
        )
    return Row(
        system=own[0].system,
        role=own[0].role,
        rounds=len(values),
        failures=sum(m.error is not None for m in own),
        value=interval(values, metric.statistic, seed=seed) if values else None,
        mean=float(np.mean(values)) if values else None,
        median=float(np.median(values)) if values else None,
        minimum=min(values) if values else None,
        maximum=max(values) if values else None,
        cpu_s=float(np.mean(cpu)) if cpu else None,
        ratio=ratio,
    )


def _by_round(metric: Metric, measurements: Sequence[Measurement]) -> dict[int, float]:
    return {
        m.round: float(m.values[metric.name])
        for m in measurements
        if m.counted and metric.name in m.values
    }


def _outcome(claim: Claim, tables: Sequence[Table]) -> Outcome:
    table = next(
        (t for t in tables if t.case == claim.case and t.metric.name == claim.metric), None
    )
    row = table.row(claim.system) if table else None
    if table is None or row is None:
        return judge(claim, None)
    if claim.peer is None:
        return judge(claim, row.value, failures=row.failures)
    peer = table.row(claim.peer)
    return judge(
        claim,
        row.ratio if claim.peer == table.peer else None,
        noise=table.noise,
        failures=row.failures,
        peer_failures=peer.failures if peer else 0,
    )
