"""A scenario simulated and run live twice, policy by policy, with its result folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sage_bench.claims import Verdict
from sage_bench.cputime import CpuMeter
from sage_bench.live.agreement import TOLERANCES, Agreement, compare
from sage_bench.live.replay import check_replayable, requests_of
from sage_bench.live.report import markdown, to_json
from sage_bench.live.runs import LiveRun, run_live, simulate
from sage_bench.live.stack import EVENTS
from sage_bench.manifest import SCHEMA_VERSION
from sage_bench.result_folder import REPORT, SUMMARY, ResultFolder
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.simulation.scenario_manifest import ManifestWriter, ScenarioRun
from sage_bench.workloads.client_request import ClientRequest

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
RUNS = ("first", "second")


def slower_network(spec: ScenarioSpec) -> ScenarioSpec:
    """The scenario with a network that is 2 % (and 1 us) slower: for the simulated A/A."""
    return spec.model_copy(update={"network_ms": NUDGE * spec.network_ms + 0.001})


def compare_scenario(
    spec: ScenarioSpec,
    *,
    seed: int,
    out: Path | None = None,
    base: Path | None = None,
    record: bool = False,
    command: Sequence[str] = (),
    report: Report = lambda text: None,
) -> ScenarioComparison:
    """Run everything and write the folder: the manifest, ``summary.json``, ``summary.md``, and for
    each live run its requests, its logs and the gateway's configuration.

    Args:
        seed: of the arrivals.
        out: results root.
        base: folder that trace files are relative to.
        record: keep what each control plane was told and decided (``events.jsonl``).
        command: what was typed, for the manifest.
        report: told what happens.

    Raises:
        SettingsError: the scenario cannot run live.
        BenchmarkError: a process does not start.
    """
    check_replayable(spec)
    requests = requests_of(spec, seed, base)
    folder = ResultFolder.create(f"live-{spec.name}", out)
    manifest = ManifestWriter(folder, spec)
    with CpuMeter([os.getpid()], poll_s=None) as own:
        compared, details = _compare_policies(spec, requests, seed, base, folder, record, report)
    folder.write_json(
        SUMMARY,
        {
            "schema_version": SCHEMA_VERSION,
            "uid": folder.uid,
            "scenario": spec.model_dump(mode="json"),
            "seed": seed,
            "tolerances": {f"p{100 * q:g}": value for q, value in TOLERANCES.items()},
            "policies": details,
        },
    )
    folder.write_text(REPORT, "\n".join(markdown(c.policy, c.agreement) for c in compared))
    manifest.write(
        ScenarioRun(
            experiment=f"live-{spec.name}",
            backend="mock",
            command=list(command) or ["sage", "bench", "live-vs-simulated", spec.name],
            options={},
            seeds=[seed],
            systems=[(policy.label, "subject", {"use": policy.use}) for policy in spec.policies],
            items=len(requests) * len(RUNS) * len(spec.policies),
            order="policy by policy: simulations, first live run, second live run",
            raw_files=[
                f"{policy.label}-{name}/requests.parquet"
                for policy in spec.policies
                for name in RUNS
            ],
            cpu_s=own.cpu_s,
        )
    )
    return ScenarioComparison(folder, tuple(compared))


def _compare_policies(
    spec: ScenarioSpec,
    requests: Sequence[ClientRequest],
    seed: int,
    base: Path | None,
    folder: ResultFolder,
    record: bool,
    report: Report,
) -> tuple[list[PolicyComparison], dict[str, object]]:
    compared: list[PolicyComparison] = []
    details: dict[str, object] = {}
    for policy in spec.policies:
        report(f"{policy.label}: simulating {len(requests)} requests")
        log = folder.path / f"{policy.label}-simulated" / EVENTS if record else None
        simulated = simulate(spec, policy, requests, seed, base, log=log)
        nudged = simulate(slower_network(spec), policy, requests, seed, base)
        lives: list[LiveRun] = []
        for name in RUNS:
            report(f"{policy.label}: {name} live run, {spec.duration_s:g} s and the last answers")
            place = folder.path / f"{policy.label}-{name}"
            lives.append(run_live(spec, policy, requests, seed, place, record=record))
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
            for name, live in zip(RUNS, lives, strict=True)
            for problem in live.summary["problems"]
        )
        compared.append(PolicyComparison(policy.label, agreement, problems))
        details[policy.label] = {
            **to_json(agreement),
            "problems": list(problems),
            "live": [{"load": live.summary, "engines": live.engines} for live in lives],
        }
    return compared, details
