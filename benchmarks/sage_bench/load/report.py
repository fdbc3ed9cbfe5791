"""The summary of a load as a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_ROWS = (
    ("TTFT", "ttft_ms"),
    ("TPOT", "tpot_ms"),
    ("longest gap", "max_gap_ms"),
    ("end to end", "e2e_ms"),
    ("queued", "queue_ms"),
    ("schedule error", "schedule_error_ms"),
)
_COLUMNS = ("n", "mean", "p50", "p90", "p95", "p99", "max")


def print_summary(
    summary: dict[str, Any], out: Path | None, console: Console | None = None
) -> None:
    """Print figures and, in front of them, why not to believe them."""
    to = console or (Console() if sys.stdout.isatty() else Console(width=120))
    for problem in summary["problems"]:
        to.print(Text(f"INVALID: {problem}.", style="bold red"))
    if summary["interrupted"]:
        to.print(Text("Interrupted: the load ended early.", style="yellow"))
    to.print(
        f"{summary['offered']} requests in {summary['seconds']:.1f} s ({summary['loop']} loop): "
        f"{summary['completed']} completed, {summary['failed']} failed; "
        f"{summary['offered_per_s']:.2f}/s offered, {summary['goodput_per_s']:.2f}/s good; "
        f"{summary['prompt_tokens_per_s']:.0f} prompt and "
        f"{summary['output_tokens_per_s']:.0f} output tokens/s.",
        highlight=False,
    )
    if summary["errors"]:
        listed = ", ".join(f"{kind} {count}" for kind, count in summary["errors"].items())
        to.print(Text(f"Not completed: {listed}."))
    table = Table("milliseconds", *_COLUMNS, box=None)
    for name, key in _ROWS:
        values = summary[key]
        if values["n"]:
            table.add_row(name, *(_figure(values.get(column)) for column in _COLUMNS))
    to.print(table)
    client = summary["client"]
    to.print(
        f"Client: {client['cpu_share']:.0%} of a core, event loop late by "
        f"{_figure(client['loop_lag_p99_ms'])} ms (p99), {summary['connections_opened']} "
        f"connections, at most {summary['most_in_flight']} in flight.",
        highlight=False,
    )
    if out is not None:
        to.print(f"File: {out}", soft_wrap=True, highlight=False)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
