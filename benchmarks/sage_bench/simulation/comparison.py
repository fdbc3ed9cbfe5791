"""Policies side by side: one table of figures with bootstrap intervals over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage_bench.report import figure, with_interval
from sage_bench.simulation.experiment_run import PolicyResult
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.stats import Interval, interval, paired_ratio

_Names = tuple[str, ...]
CHAT_METRICS: _Names = (
    "goodput",
    "ttft_s.p50",
    "ttft_s.p99",
    "tpot_s.p99",
    "tokens_per_s",
    "rejected",
)
EMBEDDING_METRICS: _Names = ("goodput", "e2e_s.p50", "e2e_s.p99", "tokens_per_s", "rejected")
BACKLOG_METRICS: _Names = ("tokens_per_s", "output_tokens_per_s", "unfinished")
CLUSTER_METRICS: _Names = ("all.llm_busy", "all.hottest_engine", "all.wasted_tokens")


@dataclass(frozen=True)
class Figure:
    """One policy's metric over the seeds; None where some seed had nothing to measure."""

    policy: str
    variant: str
    metric: str
    value: Interval | None
    ratio: Interval | None
    """Beside the first policy of the scenario, seed by seed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "policy": self.policy,
            "variant": self.variant,
            "metric": self.metric,
            "value": self.value.to_json() if self.value else None,
            "ratio": self.ratio.to_json() if self.ratio else None,
        }


def shown_metrics(spec: ScenarioSpec) -> list[str]:
    """The metrics that a scenario's table shows."""
    names: list[str] = []
    for workload in spec.workloads:
        if workload.arrival.process == "closed":
            metrics = BACKLOG_METRICS
        else:
            metrics = EMBEDDING_METRICS if workload.kind == "embedding" else CHAT_METRICS
        names += [f"{workload.name}.{metric}" for metric in metrics]
    return [*names, *CLUSTER_METRICS]


def compare_policies(results: Sequence[PolicyResult], metrics: Sequence[str]) -> list[Figure]:
    """Every metric of every policy. The same runs always give the same figures."""
    found: list[Figure] = []
    for metric in metrics:
        base = results[0].values(metric)
        for result in results:
            values = result.values(metric)
            known = all(math.isfinite(v) for v in values)
            comparable = known and result is not results[0] and all(v > 0 for v in base)
            found.append(
                Figure(
                    result.policy,
                    result.variant,
                    metric,
                    interval(values) if known else None,
                    paired_ratio(values, base) if comparable else None,
                )
            )
    return found


def print_figures(console: Console, figures: Sequence[Figure], seeds: int) -> None:
    """A table per metric group: policies are rows, metrics columns."""
    by_group: dict[str, list[str]] = {}
    for item in figures:
        group = item.metric.partition(".")[0]
        if item.metric not in by_group.setdefault(group, []):
            by_group[group].append(item.metric)
    for group, metrics in by_group.items():
        title = f"{group}: mean over {seeds} seed(s) [95 % interval]"
        table = Table("policy", *(m.partition(".")[2] for m in metrics), box=None, title=title)
        table.title_justify = "left"
        for variant in dict.fromkeys(item.variant for item in figures):
            row = {item.metric: item.value for item in figures if item.variant == variant}
            table.add_row(Text(variant), *(_cell(row.get(m)) for m in metrics))
        console.print(table)
        console.print()


def _cell(value: Interval | None) -> str:
    if value is None:
        return "-"
    if value.low == value.high:
        return figure(value.estimate)
    return with_interval(value)


def markdown(spec: ScenarioSpec, figures: Sequence[Figure]) -> str:
    """The tables as Markdown."""
    lines = [f"# {spec.name}", "", spec.about, ""]
    for metric in dict.fromkeys(item.metric for item in figures):
        lines += [
            f"## {metric}",
            "",
            "| policy | mean [95 %] | beside the first |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {item.variant} | {_cell(item.value)} | {_cell(item.ratio)} |"
            for item in figures
            if item.metric == metric
        ]
        lines.append("")
    return "\n".join(lines)
