"""Runs the targets and prints every claim beside every baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage_bench.claims import Verdict
from sage_bench.report import figure, with_interval
from sage_bench.result_folder import results_root
from sage_bench.simulation.comparison import compare_policies, print_figures
from sage_bench.simulation.controller import check_controller
from sage_bench.simulation.experiment_run import PolicyResult, Report
from sage_bench.simulation.result import simulate
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.simulation.scenario_file import known_scenarios, read_scenario
from sage_bench.simulation.target_list import HYBRID, TARGETS
from sage_bench.simulation.targets import Target, TargetOutcome, judge
from sage_prefect.common.errors import UnknownNameError

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNPROVED: "yellow"}


def run_targets(
    numbers: Sequence[str] | None,
    *,
    policy: str = HYBRID,
    seeds: Sequence[int],
    processes: int = 1,
    out: Path | None = None,
    command: Sequence[str] = (),
    report: Report | None = None,
    console: Console,
) -> list[Verdict]:
    """Simulate targets, print their figures and claims, and return the verdicts.

    Args:
        numbers: which targets; None: all.
        policy: takes hybrid's place under hybrid's name.

    Raises:
        UnknownNameError: a number or the policy is not known.
        SageError: a scenario cannot be built.
    """
    check_controller(policy)
    known = {target.number: target for target in TARGETS}
    for number in numbers or ():
        if number not in known:
            raise UnknownNameError("target", number, known)
    if policy != HYBRID:
        console.print(f"In these tables {HYBRID!r} is the policy {policy!r}.")
    verdicts: list[Verdict] = []
    for target in TARGETS:
        if numbers and target.number not in numbers:
            continue
        console.rule(f"Target {target.number}: {target.title}", align="left")
        results: dict[str, dict[str, PolicyResult]] = {}
        for name in target.scenarios:
            spec = standing_in(scenario_of(target, name), policy)
            result = simulate(
                spec,
                seeds=seeds,
                processes=processes,
                out=results_root(out) / "policies",
                command=command,
                report=report,
            )
            results[name] = {item.policy: item for item in result.policies}
            console.print(Text(f"{name}: {spec.about}", style="bold"))
            shown = [m for m in target.shown if m in result.policies[0].runs[0].figures]
            print_figures(console, compare_policies(result.policies, shown), len(seeds))
        outcomes = [judge(claim, results) for claim in target.claims]
        _print_outcomes(console, outcomes)
        verdicts += [outcome.verdict for outcome in outcomes]
    return verdicts


def scenario_of(target: Target, name: str) -> ScenarioSpec:
    """A target's scenario, reshaped if its name has a slash."""
    spec = read_scenario(known_scenarios()[name.partition("/")[0]])
    if name in target.reshape:
        spec = target.reshape[name](spec)
    return spec.model_copy(update={"name": name.replace("/", "-").replace("%", "pc")})


def standing_in(spec: ScenarioSpec, policy: str) -> ScenarioSpec:
    """The scenario with ``policy`` in hybrid's place, still under hybrid's name."""
    if policy == HYBRID:
        return spec
    policies = [
        p.model_copy(update={"use": policy, "name": p.label}) if p.use == HYBRID else p
        for p in spec.policies
    ]
    return spec.model_copy(update={"policies": policies})


def _print_outcomes(console: Console, outcomes: Sequence[TargetOutcome]) -> None:
    table = Table("claim", "bound", "found [95 % interval]", "verdict", box=None)
    for outcome in outcomes:
        claim = outcome.claim
        relation = ">=" if claim.at_least else "<="
        table.add_row(
            claim.text,
            f"{relation} {figure(claim.bound)}",
            with_interval(outcome.value),
            Text(outcome.verdict.value, style=_COLOURS[outcome.verdict]),
        )
    console.print(table)
    console.print()
