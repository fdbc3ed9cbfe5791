"""Two runs of one experiment beside each other: did a figure move, and is the move real?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from sage_bench.report import NOISY_PERCENT
from sage_bench.result_folder import MEASUREMENTS
from sage_bench.session import RunResult
from sage_bench.stats import Interval, unpaired_ratio
from sage_bench.system import Measurement, Metric
from sage_prefect.common.errors import BenchmarkError


@dataclass(frozen=True)
class Change:
    """A figure of the second run divided by that of the first.

    ``change`` is ``better``, ``worse``, or ``no difference shown`` where the interval holds 1.
    """

    case: str
    metric: Metric
    system: str
    before: float
    after: float
    ratio: Interval
    change: str


@dataclass(frozen=True)
class Comparison:
    """All changes, and what makes the two runs hard to compare."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


def compare(before: RunResult, after: RunResult) -> Comparison:
    """Compare two runs of the same experiment.

    Raises:
        BenchmarkError: the runs are of different experiments or kinds of backend, or share no
            system.
    """
    first, second = before.manifest, after.manifest
    if first.exp != second.exp:
        raise BenchmarkError(
            f"{before.folder.uid} is of experiment {first.exp!r}, {after.folder.uid} of "
            f"{second.exp!r}.",
            hint="Compare two runs of one experiment.",
        )
    if first.backend_kind != second.backend_kind:
        raise BenchmarkError(
            f"one run is {first.backend_kind}, the other {second.backend_kind}: their figures "
            "mean different things.",
            hint="Compare runs of the same kind of engines.",
        )
    changes = tuple(_changes(before, after))
    if not changes:
        raise BenchmarkError(
            f"{before.folder.uid} and {after.folder.uid} measured no system in common."
        )
    return Comparison(changes, tuple(_differences(before, after)))


def _changes(before: RunResult, after: RunResult) -> Iterator[Change]:
    old, new = _values(before), _values(after)
    for table in after.summary.tables:
        metric = table.metric
        for row in table.rows:
            key = (table.case, metric.name, row.system)
            if row.role == "noise" or not (old.get(key) and new.get(key)):
                continue
            if min(old[key]) <= 0:
                continue
            ratio = unpaired_ratio(new[key], old[key], metric.statistic, seed=after.manifest.seed)
            yield Change(
                case=table.case,
                metric=metric,
                system=row.system,
                before=_figure_of(old[key], metric),
                after=_figure_of(new[key], metric),
                ratio=ratio,
                change=_word(ratio, metric),
            )


def _figure_of(values: list[float], metric: Metric) -> float:
    """The metric's own statistic of ``values``."""
    return statistics.median(values) if metric.statistic == "median" else statistics.fmean(values)


def _word(ratio: Interval, metric: Metric) -> str:
    if ratio.contains(1.0):
        return "no difference shown"
    return "better" if (ratio.estimate > 1) == (metric.better == "higher") else "worse"


def _values(run: RunResult) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for line in run.folder.read(MEASUREMENTS):
        measurement = Measurement.from_json(line)
        if measurement.counted:
            for metric, value in measurement.values.items():
                key = (measurement.case, metric, measurement.system)
                found.setdefault(key, []).append(float(value))
    return found


def _differences(before: RunResult, after: RunResult) -> Iterator[str]:
    first, second = before.manifest, after.manifest
    for what, one, other in (
        ("CPU", first.hardware.cpu_model, second.hardware.cpu_model),
        ("cores", len(first.hardware.affinity), len(second.hardware.affinity)),
        ("Python", first.software.python, second.software.python),
        ("packages", first.software.packages_sha256[:12], second.software.packages_sha256[:12]),
        ("workload", first.workload.dataset_sha256[:12], second.workload.dataset_sha256[:12]),
        ("seed", first.seed, second.seed),
    ):
        if one != other:
            yield f"{what} differs: {one} before, {other} after."
    for run in (before, after):
        load = run.manifest.load
        if load is not None and load.others_percent + load.steal_percent > NOISY_PERCENT:
            yield (
                f"{run.folder.uid}: {load.others_percent:.0f} % of the cores went to other "
                f"processes and {load.steal_percent:.0f} % were stolen."
            )
        if run.summary.failures:
            yield f"{run.folder.uid}: {run.summary.failures} measurements failed."
    old = {(s.case, s.name): s.config_sha256 for s in first.systems}
    for system in second.systems:
        if old.get((system.case, system.name), system.config_sha256) != system.config_sha256:
            yield f"{system.name} {system.case}".rstrip() + ": its configuration differs."
