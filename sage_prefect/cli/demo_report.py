"""What ``sage demo`` prints at its end: answers, totals, addresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.markup import escape
from rich.table import Table

from sage_prefect.cli.console import console, seconds
from sage_prefect.common.paths import atomic_write
from sage_prefect.kernel.report import RunReport


def figures(
    ingested: RunReport,
    answered: RunReport,
    rows: Sequence[dict[str, Any]],
    timings: dict[str, float],
) -> dict[str, Any]:
    """The totals. Rates of a reused ingest are left out: nothing was measured."""
    reused = ingested.reused_partitions == ingested.partitions
    tokens = sum(row["answer_completion_tokens"] or 0 for row in rows)
    judged = [row for row in rows if row.get("expected")]
    return {
        "chunks": ingested.committed.rows,
        "chunks_per_s": None if reused else ingested.committed.rows / ingested.seconds,
        "ingest_reused": f"{ingested.reused_partitions}/{ingested.partitions}",
        "dead_letters": len(ingested.dead_letters) + len(answered.dead_letters),
        "questions": len(rows),
        "tokens": tokens,
        "tokens_per_s": tokens / answered.seconds if answered.seconds else None,
        "answer_ms": quantiles([row["answer_latency_ms"] for row in rows]),
        "right_source_cited": sum(cites_expected(row) for row in judged) if judged else None,
        "judged": len(judged),
        "steps": [_steps_of(report) for report in (ingested, answered)],
        "wall_s": dict(timings),
    }


def cites_expected(row: dict[str, Any]) -> bool:
    """Whether one of the acceptable sources is among the cited ones."""
    return bool(set(row["expected"]) & set(row["sources"]))


def quantiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """p50 and p95 (nearest rank) of the values that are there."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    last = len(ordered) - 1
    return {f"p{q}": ordered[min(last, int(q / 100 * len(ordered)))] for q in (50, 95)}


def _steps_of(report: RunReport) -> dict[str, Any]:
    """Per operator of one run: rows, task seconds, p50/p95 of its partitions."""
    operators: dict[str, dict[str, Any]] = {}
    for stage in report.stages:
        if stage.reused:
            continue
        for counts in stage.operators:
            entry = operators.setdefault(
                counts.operator, {"rows": 0, "seconds": 0.0, "partition_s": []}
            )
            entry["rows"] += counts.rows_in
            entry["seconds"] += counts.seconds
            entry["partition_s"].append(counts.seconds)
    for entry in operators.values():
        entry["partition_s"] = quantiles(entry["partition_s"])
    return {"pipeline": report.pipeline, "operators": operators}


def show(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Print the tables."""
    from sage_prefect.cli.stack import addresses

    table = Table(show_lines=True, header_style="bold", expand=True)
    table.add_column("question", ratio=3, overflow="fold")
    table.add_column("answer", ratio=5, overflow="fold")
    table.add_column("cited sources", ratio=3, overflow="fold")
    table.add_column("latency", justify="right", min_width=7)
    for row in rows:
        sources = list(dict.fromkeys(row["sources"]))
        if row.get("expected"):
            mark = "[green]✓[/green]" if cites_expected(row) else "[red]✗[/red]"
            cited = f"{mark} {escape(', '.join(sources))}"
        else:
            cited = escape(", ".join(sources))
        latency = row["answer_latency_ms"]
        table.add_row(
            escape(_shortened(row["question"], 300)),
            escape(row["answer"].strip()),
            cited,
            "-" if latency is None else seconds(latency / 1000),
        )
    console.print(table)
    console.print(_steps(facts))
    for line in _totals(facts):
        console.print(line)
    console.rule("where to look", align="left")
    for label, url in addresses().items():
        console.print(f"{label:<16} {url}")
    console.print("`sage status` shows the services, `sage down` stops them.")


def write(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write answers and figures as JSON."""
    content = {"figures": facts, "answers": list(rows)}
    atomic_write(path, orjson.dumps(content, option=orjson.OPT_INDENT_2, default=str))


def _steps(facts: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("flow", "step", "rows", "rows/s", "task time", "p50", "p95"):
        table.add_column(name, justify="left" if name in ("flow", "step") else "right")
    for run in facts["steps"]:
        for name, entry in run["operators"].items():
            spread = entry["partition_s"] or {}
            rate = f"{entry['rows'] / entry['seconds']:.0f}" if entry["seconds"] > 1e-3 else "-"
            table.add_row(
                run["pipeline"],
                name,
                str(entry["rows"]),
                rate,
                f"{entry['seconds']:.2f} s",
                *(f"{spread[q]:.2f} s" if q in spread else "-" for q in ("p50", "p95")),
            )
    table.caption = "p50 and p95 are per partition"
    return table


def _totals(facts: dict[str, Any]) -> list[str]:
    rate = facts["chunks_per_s"]
    lines = [
        f"chunks indexed   {facts['chunks']}"
        + (f" ({rate:.0f}/s)" if rate else f" (reused: partitions {facts['ingest_reused']})"),
        f"tokens generated {facts['tokens']}"
        + (f" ({facts['tokens_per_s']:.1f}/s)" if facts["tokens_per_s"] else ""),
    ]
    if facts["answer_ms"]:
        p50, p95 = (facts["answer_ms"][q] / 1000 for q in ("p50", "p95"))
        lines.append(f"answer latency   p50 {p50:.2f} s, p95 {p95:.2f} s")
    if facts["judged"]:
        lines.append(
            f"right source     {facts['right_source_cited']} of {facts['judged']} questions"
        )
    if facts["dead_letters"]:
        lines.append(f"set aside        {facts['dead_letters']} row(s) or file(s); see Prefect UI")
    wall = ", ".join(f"{name} {seconds(value)}" for name, value in facts["wall_s"].items())
    lines.append(f"wall time        {wall}")
    return lines


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
