"""``sage bench simulate``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sage_bench.simulation.experiment_run import Report


def simulate_scenario(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of one that comes with SAGE.")
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Only these policies of the scenario."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds 0 to N-1; default: the scenario's own.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Simulations at once, each in a process of its own.")
    ] = 1,
    requests: Annotated[
        int,
        typer.Option(
            min=0, help="Requests of each simulation, evenly spaced, that are kept as Parquet."
        ),
    ] = 10_000,
    duration: Annotated[
        float | None, typer.Option(min=1.0, help="Simulated seconds; default: the scenario's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results root; default: $SAGE_RESULTS_DIR, else ./results.")
    ] = None,
) -> None:
    """Simulate a scenario under several policies, with the gateway's own scheduler code."""
    from rich.console import Console

    from sage_bench.simulation.comparison import print_figures
    from sage_bench.simulation.result import simulate
    from sage_bench.simulation.scenario_file import find_scenario, narrowed, read_scenario

    file = find_scenario(scenario)
    spec = narrowed(read_scenario(file), policies, duration)
    with _progress() as report:
        result = simulate(
            spec,
            seeds=range(seeds) if seeds else None,
            processes=processes,
            requests=requests,
            out=out,
            base=file.parent,
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            report=report,
        )
    console = Console() if sys.stdout.isatty() else Console(width=180)
    print_figures(console, result.figures, seeds or len(spec.seeds))
    console.print(f"Files: {result.folder.path}", soft_wrap=True, highlight=False)


def check_policies(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Numbers of targets, e.g. 1 3; default: all.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="The policy that stands in for hybrid in every scenario.")
    ] = "hybrid",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds 0 to N-1; fewer than 5 prove nothing.")
    ] = 5,
    processes: Annotated[
        int, typer.Option(min=1, help="Simulations at once, each in a process of its own.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results root; default: $SAGE_RESULTS_DIR, else ./results.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 when a claim fails, 3 when one is unproved."),
    ] = False,
) -> None:
    """Simulate what the hybrid policy promises, beside each baseline at its best setting."""
    from rich.console import Console

    from sage_bench.claims import Verdict
    from sage_bench.simulation.target_run import run_targets

    console = Console() if sys.stdout.isatty() else Console(width=180)
    with _progress() as report:
        verdicts = run_targets(
            targets or None,
            policy=policy,
            seeds=range(seeds),
            processes=processes,
            out=out,
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            report=report,
            console=console,
        )
    if check:
        failed, open_ = Verdict.FAIL in verdicts, Verdict.UNPROVED in verdicts
        raise typer.Exit(1 if failed else 3 if open_ else 0)


@contextmanager
def _progress() -> Iterator[Report]:
    """A progress bar on standard error; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report
