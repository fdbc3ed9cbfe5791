"""A scenario simulated and run live twice, policy by policy, with its result folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sage_bench.claims import Verdict
from sage_bench.live.agreement import TOLERANCES, Agreement, compare
from sage_bench.live.replay import check_replayable, requests_of
from sage_bench.live.report import markdown, to_json
from sage_bench.live.runs import LiveRun, run_live, simulate
from sage_bench.machine import describe_hardware
from sage_bench.result_folder import REPORT, SUMMARY, ResultFolder
from sage_bench.simulation.scenario import ScenarioSpec
from sage_prefect import __version__

Report = Callable[[str], None]


@dataclass(frozen=True)
class PolicyComparison:
    """One policy: how the runs agree, and why a live run is not to be believed, if it is not."""

    policy: str
    agreement: Agreement
    problems: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The agreement's; UNPROVED where a live run is invalid."""
        return Verdict.UNPROVED if self.problems else self.agreement.verdict


@dataclass(frozen=True)
class ScenarioComparison:
    """All policies."""

    folder: ResultFolder
    policies: tuple[PolicyComparison, ...]

    @property
    def verdict(self) -> Verdict:
        """FAIL if any fails, PASS if all pass."""
        found = {one.verdict for one in self.policies}
        if Verdict.FAIL in found:
            return Verdict.FAIL
        return Verdict.PASS if found == {Verdict.PASS} else Verdict.UNPROVED


NUDGE = 1.02


def slower_network(spec: ScenarioSpec) -> ScenarioSpec:
    """The scenario with a network that is 2 % (and 1 us) slower: for the simulated A/A."""
    return spec.model_copy(update={"network_ms": NUDGE * spec.network_ms + 0.001})


def compare_scenario(
    spec: ScenarioSpec,
    *,
    seed: int,
    out: Path | None = None,
    base: Path | None = None,
    report: Report = lambda text: None,
) -> ScenarioComparison:
    """Run everything and write the folder: ``summary.json``, ``summary.md``, and for each live run
    its requests, its logs and the gateway's configuration.

    Args:
        base: folder that trace files are relative to.
        report: told what happens.

    Raises:
        SettingsError: the scenario cannot run live.
        BenchmarkError: a process does not start.
    """
    check_replayable(spec)
    requests = requests_of(spec, seed, base)
    folder = ResultFolder.create(f"live-{spec.name}", out)
    compared: list[PolicyComparison] = []
    details: dict[str, object] = {}
    for policy in spec.policies:
        report(f"{policy.label}: simulating {len(requests)} requests")
        simulated, nudged = (
            simulate(one, policy, requests, seed, base) for one in (spec, slower_network(spec))
        )
        lives: list[LiveRun] = []
        for name in ("first", "second"):
            report(f"{policy.label}: {name} live run, {spec.duration_s:g} s and the last answers")
            place = folder.path / f"{policy.label}-{name}"
            lives.append(run_live(spec, policy, requests, seed, place))
        agreement = compare(
            simulated,
            lives[0].observation,
            lives[1].observation,
            nudged,
            warmup_s=spec.warmup_s,
            seed=seed,
        )
        problems = tuple(
            f"{name} live run: {problem}"
            for name, live in zip(("first", "second"), lives, strict=True)
            for problem in live.summary["problems"]
        )
        compared.append(PolicyComparison(policy.label, agreement, problems))
        details[policy.label] = {
            **to_json(agreement),
            "problems": list(problems),
            "live": [{"load": live.summary, "engines": live.engines} for live in lives],
        }
    folder.write_json(
        SUMMARY,
        {
            "uid": folder.uid,
            "sage_version": __version__,
            "scenario": spec.model_dump(mode="json"),
            "seed": seed,
            "tolerances": {f"p{100 * q:g}": value for q, value in TOLERANCES.items()},
            "hardware": describe_hardware(folder.path),
            "policies": details,
        },
    )
    folder.write_text(REPORT, "\n".join(markdown(c.policy, c.agreement) for c in compared))
    return ScenarioComparison(folder, tuple(compared))
