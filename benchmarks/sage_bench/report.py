"""The same report three ways: a table for the terminal, Markdown, JSON (in :mod:`summary`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sage_bench.claims import Outcome, Verdict
from sage_bench.manifest import Manifest
from sage_bench.stats import Interval
from sage_bench.summary import Row, Summary, Table

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNPROVED: "yellow"}
# Above this share of the cores going elsewhere the report warns.
NOISY_PERCENT = 10.0
COLUMNS = ("system", "value [95 % CI]", "mean", "min .. max", "CPU s", "rounds", "beside peer")


def figure(value: float | None) -> str:
    """A number with four significant digits, without exponent where one can read it."""
    if value is None:
        return "-"
    size = abs(value)
    if size == 0:
        return "0"
    if not 1e-4 <= size < 1e7:
        return f"{value:.3e}"
    return f"{value:,.{min(max(3 - math.floor(math.log10(size)), 0), 6)}f}"


def with_interval(value: Interval | None) -> str:
    """``estimate [low, high]``; the ends are left out where one round says nothing about them."""
    if value is None:
        return "-"
    ends = value.to_json()
    if ends["low"] is None or ends["high"] is None:
        return f"{figure(value.estimate)} [?]"
    return f"{figure(value.estimate)} [{figure(value.low)}, {figure(value.high)}]"


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells in the order of COLUMNS."""
    rounds = f"{row.rounds}" + (f" (+{row.failures} failed)" if row.failures else "")
    beside = "peer" if row.role == "peer" else with_interval(row.ratio)
    spread = f"{figure(row.minimum)} .. {figure(row.maximum)}" if row.rounds else "-"
    return (
        row.system,
        with_interval(row.value),
        figure(row.mean),
        spread,
        figure(row.cpu_s),
        rounds,
        beside,
    )


def heading(table: Table) -> str:
    """What a table shows."""
    metric = table.metric
    case = f"{table.case}: " if table.case else ""
    return f"{case}{metric.name}, {metric.unit} ({metric.statistic}; {metric.better} is better)"


@dataclass(frozen=True)
class Overview:
    """A metric of an experiment with several cases on one screen: cases down, systems across."""

    title: str
    systems: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]  # case, then a cell per system


def overviews(summary: Summary) -> list[Overview]:
    """One per metric, where there are several cases; a cell is value and ratio to the peer."""
    found = []
    for metric in dict.fromkeys(table.metric for table in summary.tables):
        tables = [table for table in summary.tables if table.metric == metric]
        if len(tables) < 2:
            continue
        systems = dict.fromkeys(row.system for table in tables for row in table.rows)
        lines = tuple(
            (table.case, *(_overview_cell(table.row(system)) for system in systems))
            for table in tables
        )
        title = f"All cases: {metric.name}, {metric.unit} ({metric.better} is better)"
        found.append(Overview(title, tuple(systems), lines))
    return found


def _overview_cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "-"
    value = figure(row.value.estimate)
    return value if row.role == "peer" else f"{value} ({with_interval(row.ratio)})"


def claim_line(outcome: Outcome) -> str:
    """A claim, its figure and why it was judged so."""
    claim = outcome.claim
    of = f"{claim.metric} of {claim.system}" + (f" / {claim.peer}" if claim.peer else "")
    where = f" ({claim.case})" if claim.case else ""
    return (
        f"{claim.text}: {of}{where} {claim.direction} {figure(claim.bound)}: measured "
        f"{with_interval(outcome.interval)}; {outcome.reason}"
    )


def context_lines(manifest: Manifest) -> list[str]:
    """What one must know to read the figures."""
    hardware, load, git = manifest.hardware, manifest.load, manifest.git
    gpus = hardware.gpus
    gpu = "no GPU" if gpus == "none" else ", ".join(g.get("name", "GPU") for g in gpus)
    dirty = f" + {git.changed_files} changed files" if git.dirty else ""
    lines = [
        f"{hardware.cpu_model}, {len(hardware.affinity)} of {hardware.cores_logical} cores, "
        f"{hardware.ram_bytes / 2**30:.1f} GiB, {gpu}; {manifest.software.os}, "
        f"Python {manifest.software.python}; git {git.commit[:12]}{dirty}.",
        f"Engines: {manifest.backend_kind}. Workload: {manifest.workload.dataset} "
        f"({manifest.workload.items:,} items); {manifest.workload.arrival}.",
        f"{manifest.rounds} rounds in {manifest.order} order after {manifest.warmup.rounds} "
        f"warm-up rounds, seed {manifest.seed}.",
    ]
    if load is not None:
        lines.append(
            f"Cores during the run: {load.own_percent:.0f} % this benchmark, "
            f"{load.others_percent:.0f} % other processes, {load.steal_percent:.1f} % stolen."
        )
        if load.others_percent + load.steal_percent > NOISY_PERCENT:
            lines.append("The machine was not quiet: trust CPU times and ratios, not wall times.")
    if manifest.status != "complete":
        lines.append(f"This run is {manifest.status}: its figures are not a result.")
    return lines


def print_report(console: Console, summary: Summary, manifest: Manifest) -> None:
    """Print tables, claims and context."""
    console.print(Text(f"{summary.experiment}: {summary.title}", style="bold"))
    for line in context_lines(manifest):
        console.print(Text(line, style="dim"))
    for table in summary.tables:
        shown = RichTable(title=heading(table), title_justify="left", title_style="bold")
        for index, column in enumerate(COLUMNS):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*cells(row), style="dim" if row.role == "noise" else None)
        console.print(shown)
    for overview in overviews(summary):
        grid = RichTable(title=overview.title, title_justify="left", title_style="bold")
        for index, column in enumerate(("case", *overview.systems)):
            grid.add_column(column, justify="left" if index == 0 else "right")
        for case in overview.lines:
            grid.add_row(*case)
        console.print(grid)
    for outcome in summary.outcomes:
        mark = Text(f"{outcome.verdict.value:<8} ", style=_COLOURS[outcome.verdict])
        console.print(mark + Text(claim_line(outcome)))
    if summary.failures:
        console.print(Text(f"{summary.failures} measurements failed.", style="bold red"))


def markdown(summary: Summary, manifest: Manifest) -> str:
    """Content of summary.md."""
    return "\n".join(_markdown_lines(summary, manifest)) + "\n"


def _markdown_lines(summary: Summary, manifest: Manifest) -> Iterator[str]:
    yield f"# {summary.experiment}: {summary.title}"
    yield ""
    yield from context_lines(manifest)
    yield ""
    yield f"Expected before the run: {manifest.expectation}"
    for table in summary.tables:
        yield from _grid(heading(table), COLUMNS, [cells(row) for row in table.rows])
    for overview in overviews(summary):
        yield from _grid(overview.title, ("case", *overview.systems), overview.lines)
    if summary.outcomes:
        yield ""
        yield "## Claims"
        yield ""
        for outcome in summary.outcomes:
            yield f"- **{outcome.verdict.value}** {claim_line(outcome)}"
    if summary.failures:
        yield ""
        yield f"{summary.failures} measurements failed; measurements.jsonl holds each error."
    yield ""
    yield f"Run `{summary.uid}` by `{_shell(manifest.command)}`."


def _grid(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    for line in (columns, ["---", *["---:"] * (len(columns) - 1)], *lines):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def _shell(command: list[Any]) -> str:
    return " ".join(str(part) for part in command)
