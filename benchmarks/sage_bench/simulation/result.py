"""Writes a simulation's results: the folder, manifest and raw figures that every benchmark has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sage_bench.cputime import CpuMeter
from sage_bench.manifest import SCHEMA_VERSION
from sage_bench.result_folder import REPORT, SUMMARY, ResultFolder
from sage_bench.simulation.assembly import variants
from sage_bench.simulation.comparison import (
    Figure,
    compare_policies,
    markdown,
    shown_metrics,
)
from sage_bench.simulation.experiment_run import (
    PolicyResult,
    Report,
    Run,
    best_variants,
    run_scenario,
)
from sage_bench.simulation.request_table import RequestFiles
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.simulation.scenario_manifest import ManifestWriter, ScenarioRun

RUNS = "runs"
PARQUET = "runs.parquet"
REQUESTS = "requests"


@dataclass(frozen=True)
class SimulationResult:
    """A finished comparison."""

    folder: ResultFolder
    runs: tuple[Run, ...]
    policies: tuple[PolicyResult, ...]
    figures: tuple[Figure, ...]


def simulate(
    spec: ScenarioSpec,
    *,
    seeds: Sequence[int] | None = None,
    processes: int = 1,
    requests: int = 0,
    out: Path | None = None,
    base: Path | None = None,
    command: Sequence[str] = (),
    report: Report | None = None,
) -> SimulationResult:
    """Run a scenario and write its result folder: ``runs.jsonl`` and ``runs.parquet`` (a row per
    run, a column per metric), ``summary.json``, ``summary.md``, the manifest.

    Args:
        requests: up to so many requests of each simulation go to the folder ``requests``.

    Raises:
        SageError: the scenario cannot be built, or the folder cannot be written.
    """
    used = list(spec.seeds if seeds is None else seeds)
    folder = ResultFolder.create(f"simulate-{spec.name}", out)
    manifest = ManifestWriter(folder, spec)
    with CpuMeter([os.getpid()], poll_s=None) as own:
        runs = run_scenario(
            spec,
            seeds=used,
            base=base,
            processes=processes,
            requests=RequestFiles(folder.path / REQUESTS, requests) if requests else None,
            report=report,
        )
    for run in runs:
        folder.append(RUNS, _row(run))
    _write_parquet(folder.path / PARQUET, runs)
    policies = best_variants(runs, spec)
    figures = compare_policies(policies, shown_metrics(spec))
    folder.write_json(
        SUMMARY,
        {
            "schema_version": SCHEMA_VERSION,
            "uid": folder.uid,
            "scenario": spec.model_dump(mode="json"),
            "seeds": used,
            "best": {p.policy: p.variant for p in policies},
            "figures": [item.to_json() for item in figures],
        },
    )
    folder.write_text(REPORT, markdown(spec, figures))
    manifest.write(
        ScenarioRun(
            experiment=f"simulate-{spec.name}",
            backend="calibrated-sim",
            command=list(command) or ["sage", "bench", "simulate"],
            options={"processes": processes},
            seeds=used,
            systems=[
                (
                    variant.label,
                    "peer" if variant.use.startswith("baseline:") else "subject",
                    {"use": variant.use, **variant.options, **variant.engines},
                )
                for policy in spec.policies
                for variant in variants(policy)
            ],
            items=sum(run.requests for run in runs),
            order="seed by seed",
            raw_files=[
                f"{RUNS}.jsonl",
                PARQUET,
                *(str(f.relative_to(folder.path)) for f in sorted(folder.path.glob("requests/*"))),
            ],
            cpu_s=own.cpu_s,
        )
    )
    return SimulationResult(folder, tuple(runs), tuple(policies), tuple(figures))


def _row(run: Run) -> dict[str, object]:
    return {
        "policy": run.policy,
        "variant": run.variant,
        "seed": run.seed,
        "cpu_s": run.cpu_s,
        "rss_mb": run.rss_mb,
        "requests": run.requests,
        **run.figures,
    }


def _write_parquet(file: Path, runs: Sequence[Run]) -> None:
    rows = [_row(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, file)
