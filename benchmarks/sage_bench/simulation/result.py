"""Writes a simulation's results: the folder, manifest and raw figures that every benchmark has."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sage_bench.cputime import CpuMeter
from sage_bench.machine import CpuTicks, describe_hardware, load_between
from sage_bench.manifest import SCHEMA_VERSION, config_hash
from sage_bench.result_folder import REPORT, SUMMARY, ResultFolder
from sage_bench.simulation.assembly import Variant, variants
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
from sage_bench.software import (
    describe_checkout,
    describe_software,
    installed_packages,
    packages_text,
)
from sage_prefect import __version__
from sage_prefect.common.paths import atomic_write

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
    packages = installed_packages()
    atomic_write(folder.path / "packages.txt", packages_text(packages))
    started_at, started = datetime.now(timezone.utc), time.perf_counter()
    load_average, ticks = os.getloadavg()[0], CpuTicks.now()
    with CpuMeter([os.getpid()], poll_s=None) as own:
        runs = run_scenario(
            spec,
            seeds=used,
            base=base,
            processes=processes,
            requests=RequestFiles(folder.path / REQUESTS, requests) if requests else None,
            report=report,
        )
    load = load_between(ticks, CpuTicks.now(), own.cpu_s)
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
    folder.write_manifest(
        {
            "schema_version": SCHEMA_VERSION,
            "uid": folder.uid,
            "exp": f"simulate-{spec.name}",
            "number": "-",
            "title": spec.about or spec.name,
            "status": "complete",
            "claims": [],
            "expectation": spec.about or "none",
            "git": describe_checkout(Path(__file__)),
            "sage_version": __version__,
            "command": list(command) or ["sage", "bench", "simulate"],
            "options": {"scenario": spec.model_dump(mode="json"), "processes": processes},
            "seed": used[0],
            "started_at": started_at.isoformat(),
            "ended_at": datetime.now(timezone.utc).isoformat(),
            "duration_s": time.perf_counter() - started,
            "hardware": describe_hardware(folder.path),
            "load": {**load, "load_average_at_start": load_average},
            "software": describe_software(packages),
            "backend_kind": "calibrated-sim",
            "systems": [
                {
                    "case": spec.name,
                    "name": variant.label,
                    "role": "peer" if variant.use.startswith("baseline:") else "subject",
                    "version": __version__,
                    "config": (
                        config := {"use": variant.use, **variant.options, **variant.engines}
                    ),
                    "config_sha256": config_hash(config),
                }
                for policy in spec.policies
                for variant in variants(policy)
            ],
            "models": [],
            "workload": {
                "dataset": ", ".join(w.lengths for w in spec.workloads),
                "dataset_sha256": "none",
                "items": sum(run.requests for run in runs),
                "sizes": {w.name: w.lengths for w in spec.workloads},
                "arrival": "; ".join(f"{w.name}: {w.arrival.process}" for w in spec.workloads),
                "mix": ", ".join(w.name for w in spec.workloads),
                "tenants": "; ".join(f"{w.name}: {w.tenants.count}" for w in spec.workloads),
            },
            "warmup": {"rounds": 0},
            "rounds": len(used),
            "order": "seed by seed",
            "pause_s": 0.0,
            "slo": {
                f"{w.name}.{name}": 1000 * value
                for w in spec.workloads
                for name, value in w.slo.model_dump().items()
                if value is not None
            },
            "raw_files": [
                f"{RUNS}.jsonl",
                PARQUET,
                *(str(f.relative_to(folder.path)) for f in sorted(folder.path.glob("requests/*"))),
            ],
        }
    )
    return SimulationResult(folder, tuple(runs), tuple(policies), tuple(figures))


def _config(variant: Variant) -> dict[str, object]:
    return {
        "use": variant.use,
        "options": variant.options,
        "engines": variant.engines,
        "without": list(variant.without),
    }


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
