"""``sage bench load-limits``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

FIRST_RATES = {"requests": 100.0, "chunks": 20.0}


def load_limits(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="requests (short answers), chunks (streams); default: both."),
    ] = None,
    first_rate: Annotated[
        float | None, typer.Option(help="Requests/s of the first step; then a quarter more each.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=2.0, help="Length of a step.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the steps as JSON.")] = False,
) -> None:
    """Find out how much load this machine's load generator can send, and a process of mock engines
    answer: raise the rate until the generator's own schedule error (p99) is above 5 ms."""
    import tempfile
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from sage_bench.load.limits import SHAPES, Step, find_limit, last_valid

    console = Console() if sys.stdout.isatty() else Console(width=130)
    found: dict[str, list[Step]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in what or SHAPES:
            first = FIRST_RATES.get(name, 1.0) if first_rate is None else first_rate
            found[name] = find_limit(name, first, seconds, Path(folder) / f"{name}.log")
    if as_json:
        import orjson

        content = {name: [step.to_json() for step in steps] for name, steps in found.items()}
        sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    for name, steps in found.items():
        unit = "chunk" if SHAPES[name].stream else "request"
        table = Table(
            "offered/s", "completed/s", "chunks/s", "late ms (p99)", "client", f"us/{unit}",
            "mock engines", f"us/{unit}", box=None, title=name, title_justify="left",
        )  # fmt: skip
        for step in steps:
            table.add_row(
                f"{step.rate:.0f}", f"{step.completed:.0f}", f"{step.chunks:.0f}",
                f"{step.schedule_error_p99_ms:.2f}", f"{step.client_cpu_share:.0%}",
                f"{step.client_us:.0f}", f"{step.server_cpu_share:.0%}", f"{step.server_us:.0f}",
                style="red" if step.problems else None,
            )  # fmt: skip
        console.print(table)
        for problem in steps[-1].problems:
            console.print(f"Ended: {problem}.", highlight=False)
        last = last_valid(steps)
        if last is not None:
            console.print(
                f"Last valid: {last.completed:.0f} requests/s, {last.chunks:.0f} chunks/s.",
                highlight=False,
            )
