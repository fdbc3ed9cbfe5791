"""``sage bench live-vs-simulated``: the last rung of the simulator's validation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sage_bench.live.comparison import Report

FAILED, UNPROVED = 1, 3


def live_vs_simulated(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of one that comes with SAGE.")
    ] = "live-check",
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Only these policies of the scenario."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds of load; default: the scenario's own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the arrivals; default: the scenario's first.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results root; default: $SAGE_RESULTS_DIR, else ./results.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep the event logs of the live runs and the simulation."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 when they differ, 3 when it is unproved."),
    ] = False,
) -> None:
    """Run a scenario live, twice, through the real gateway in front of mock engines, and compare
    percentiles with its simulation of the same arrivals.

    Takes, for each policy, twice the scenario's duration.
    """
    from rich.console import Console

    from sage_bench.claims import Verdict
    from sage_bench.live.comparison import compare_scenario
    from sage_bench.live.report import print_agreement
    from sage_bench.simulation.scenario_file import find_scenario, narrowed, read_scenario

    file = find_scenario(scenario)
    spec = narrowed(read_scenario(file), policies, duration)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    compared = compare_scenario(
        spec,
        seed=spec.seeds[0] if seed is None else seed,
        out=out,
        base=file.parent,
        record=record,
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        report=_reporter(console),
    )
    for one in compared.policies:
        for problem in one.problems:
            console.print(f"INVALID: {one.policy}: {problem}.", style="bold red")
        print_agreement(console, one.policy, one.agreement)
    console.print(f"Files: {compared.folder.path}", soft_wrap=True, highlight=False)
    verdict = compared.verdict
    if check and verdict is not Verdict.PASS:
        raise typer.Exit(FAILED if verdict is Verdict.FAIL else UNPROVED)


def _reporter(console: Console) -> Report:
    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    return say
