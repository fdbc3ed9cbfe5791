"""``sage bench``: list, run, show and compare benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_bench.live.command import live_vs_simulated
from sage_bench.load.command import load
from sage_bench.load.limits_command import load_limits
from sage_bench.mock_engine.command import mock_engine
from sage_bench.simulation.command import check_policies, simulate_scenario

if TYPE_CHECKING:
    from sage_bench.session import Progress, RunResult

app = typer.Typer(
    name="bench",
    help="Measure SAGE beside its peers; every figure with its interval, its noise and its files.",
    no_args_is_help=True,
)

app.command("simulate")(simulate_scenario)
app.command("policies")(check_policies)
app.command("load")(load)
app.command("load-limits")(load_limits)
app.command("mock-engine")(mock_engine)
app.command("live-vs-simulated")(live_vs_simulated)

# Exit codes of --check, so that a script can tell "worse than promised" from "not shown".
FAILED, UNPROVED = 1, 3


@app.command("list")
def list_experiments() -> None:
    """List the experiments: what each asks."""
    from rich.console import Console
    from rich.table import Table

    from sage_bench import registry

    table = Table("name", "number", "rounds", "question", box=None)
    for name in registry.names():
        experiment = registry.get(name)
        table.add_row(name, experiment.number, str(experiment.rounds), experiment.title)
    Console().print(table)


@app.command("run")
def run_experiment(
    name: Annotated[str, typer.Argument(help="An experiment; see `sage bench list`.")],
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: the experiment's own number.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of workload and bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Results root; default: $SAGE_RESULTS_DIR, else ./results.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small and short: shows that it works, proves nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 when a claim fails, 3 when one is unproved."),
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set an option of the experiment."),
    ] = None,
) -> None:
    """Run an experiment and write its result folder."""
    from sage_bench import registry
    from sage_bench.experiment import RunConfig
    from sage_bench.session import execute

    config = RunConfig(
        rounds=rounds,
        seed=seed,
        out=out,
        quick=quick,
        options=_parse_options(options or []),
        command=_command_line(),
    )
    experiment = registry.get(name)
    with _ProgressBar() as progress:
        result = execute(experiment, config, progress)
    _print(result)
    if check:
        raise typer.Exit(_exit_code(result))


@app.command("overhead")
def overhead(
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: the experiment's own number.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results root; default: $SAGE_RESULTS_DIR, else ./results.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small and short: shows that it works, proves nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 when a claim fails, 3 when one is unproved."),
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set an option of the experiment."),
    ] = None,
) -> None:
    """What the gateway costs beside other gateways: `sage bench run overhead`."""
    run_experiment("overhead", rounds, 0, out, quick, check, options)


@app.command("show")
def show(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 when a claim fails, 3 when one is unproved."),
    ] = False,
) -> None:
    """Print the report of a result folder, computed again from its raw data."""
    from sage_bench.session import load

    loaded = load(result)
    _print(loaded)
    if check:
        raise typer.Exit(_exit_code(loaded))


@app.command("compare")
def compare_runs(
    before: Annotated[Path, typer.Argument(help="A result folder.")],
    after: Annotated[Path, typer.Argument(help="A later one of the same experiment.")],
) -> None:
    """Compare two runs of one experiment; says which figures moved beyond chance."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sage_bench.compare import compare
    from sage_bench.report import figure, with_interval
    from sage_bench.session import load

    comparison = compare(load(before), load(after))
    table = Table("case", "metric", "system", "before", "after", "after / before", "change")
    for change in comparison.changes:
        table.add_row(
            change.case,
            f"{change.metric.name}, {change.metric.unit}",
            change.system,
            figure(change.before),
            figure(change.after),
            with_interval(change.ratio),
            change.change,
        )
    console = _console(Console)
    console.print(table)
    for warning in comparison.warnings:
        console.print(Text(f"Note: {warning}", style="yellow"))


def _print(result: RunResult) -> None:
    from rich.console import Console

    from sage_bench.report import print_report

    console = _console(Console)
    print_report(console, result.summary, result.manifest)
    console.print(f"Files: {result.folder.path}", soft_wrap=True, highlight=False)


def _console(kind: Any) -> Any:
    # Tables are wide; a pipe or a log has no width of its own and must not cut them.
    return kind() if sys.stdout.isatty() else kind(width=160)


def _exit_code(result: RunResult) -> int:
    from sage_bench.claims import Verdict

    verdicts = {outcome.verdict for outcome in result.summary.outcomes}
    if Verdict.FAIL in verdicts:
        return FAILED
    return UNPROVED if Verdict.UNPROVED in verdicts else 0


def _parse_options(given: list[str]) -> dict[str, Any]:
    from sage_prefect.common.errors import SettingsError

    options: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {item!r} is not NAME=VALUE.", hint="E.g. --set chunks=500.")
        options[name] = value
    return options


def _command_line() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


class _ProgressBar:
    """A progress bar on standard error; silent where that is no terminal."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        task = self._bar.add_task("preparing", total=None)

        def report(what: str, done: int, total: int) -> None:
            self._bar.update(task, description=what, completed=done, total=total)

        return report

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
