"""The comparison as tables and plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage_bench.claims import Verdict
from sage_bench.live.agreement import Agreement, Ratio, Row

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNPROVED: "yellow"}
_COLUMNS = (
    "workload", "metric", "", "n", "simulated ms", "live ms", "live / simulated", "live A/A",
    "simulated A/A", "allowed", "verdict",
)  # fmt: skip
_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}


def print_agreement(console: Console, policy: str, agreement: Agreement) -> None:
    """Print one policy's rows."""
    table = Table(*_COLUMNS, title=f"Policy {policy}", box=None, title_justify="left")
    for row in agreement.rows:
        *cells, verdict = _cells(row)
        table.add_row(*cells, Text(verdict, style=_COLOURS[row.verdict]))
    console.print(table)
    for item in agreement.completions:
        console.print(
            f"{item.workload}: {item.offered} requests after warm-up; answered whole: simulated "
            f"{item.simulated:.1%}, live {item.live:.1%} and {item.repeat:.1%}: "
            f"{item.verdict.value}",
            highlight=False,
        )
    console.print(Text(f"{policy}: {agreement.verdict.value}", style=_COLOURS[agreement.verdict]))


def markdown(policy: str, agreement: Agreement) -> str:
    """The same for a file."""
    return "\n".join(_markdown(policy, agreement)) + "\n"


def to_json(agreement: Agreement) -> dict[str, Any]:
    """Plain values."""
    return {
        "verdict": agreement.verdict.value,
        "rows": [
            {
                "workload": row.workload,
                "metric": row.metric,
                "quantile": row.quantile,
                "requests": row.requests,
                "simulated_s": row.simulated_s,
                "live_s": row.live_s,
                "ratio": _ratio_json(row.ratio),
                "repeat": _ratio_json(row.repeat),
                "nudged": _ratio_json(row.nudged),
                "allowed": row.allowed,
                "verdict": row.verdict.value,
            }
            for row in agreement.rows
        ],
        "completions": [
            {
                "workload": item.workload,
                "offered": item.offered,
                "simulated": item.simulated,
                "live": item.live,
                "repeat": item.repeat,
                "verdict": item.verdict.value,
            }
            for item in agreement.completions
        ],
    }


def _markdown(policy: str, agreement: Agreement) -> Iterator[str]:
    yield f"## Policy {policy}: {agreement.verdict.value}\n"
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "| " + " | ".join("---" for _ in _COLUMNS) + " |"
    for row in agreement.rows:
        yield "| " + " | ".join(_cells(row)) + " |"
    yield ""
    for item in agreement.completions:
        yield (
            f"{item.workload}: {item.offered} requests; answered whole: {item.simulated:.1%}, "
            f"{item.live:.1%}, {item.repeat:.1%}: {item.verdict.value}"
        )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.workload,
        _NAMES[row.metric],
        f"p{100 * row.quantile:g}",
        str(row.requests),
        _ms(row.simulated_s),
        _ms(row.live_s),
        _shown(row.ratio),
        _shown(row.repeat),
        f"{row.nudged.estimate:.3f}",
        f"±{row.allowed:.1%}",
        row.verdict.value,
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _shown(ratio: Ratio) -> str:
    return f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _ratio_json(ratio: Ratio) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in (
            ("estimate", ratio.estimate),
            ("low", ratio.low),
            ("high", ratio.high),
        )
    }
