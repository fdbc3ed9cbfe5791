"""Runs an experiment from its declaration to a complete result folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sage_bench.claims import Claim, Verdict
from sage_bench.cputime import CpuMeter
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.interleave import arranged, interleave
from sage_bench.machine import CpuTicks, describe_hardware, load_between
from sage_bench.manifest import SCHEMA_VERSION, Manifest, Status, config_hash
from sage_bench.report import markdown
from sage_bench.result_folder import MANIFEST, MEASUREMENTS, REPORT, SUMMARY, ResultFolder
from sage_bench.software import (
    describe_checkout,
    describe_software,
    installed_packages,
    packages_text,
)
from sage_bench.summary import Summary, summarise
from sage_bench.system import Measurement, Metric
from sage_prefect import __version__
from sage_prefect.common.errors import BenchmarkError, CorruptFileError
from sage_prefect.common.paths import atomic_write

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: ResultFolder
    manifest: Manifest
    summary: Summary

    @property
    def passed(self) -> bool:
        """Whether every claim passed."""
        return all(outcome.verdict is Verdict.PASS for outcome in self.summary.outcomes)


def execute(
    experiment: Experiment, config: RunConfig, progress: Progress | None = None
) -> RunResult:
    """Run ``experiment`` and write its result folder.

    Args:
        progress: called before each measurement with what comes, how many are done, how many there
            are.

    Raises:
        SettingsError: an option of the experiment is unknown or wrong.
        BenchmarkError: nothing could be measured: every round of every system failed.
        SageError: the experiment cannot be prepared.
    """
    options = experiment.parse_options(config.options)
    folder = ResultFolder.create(experiment.name, config.out)
    packages = installed_packages()
    atomic_write(folder.path / "packages.txt", packages_text(packages))
    started_at, started = datetime.now(timezone.utc), time.perf_counter()
    load_average, ticks = os.getloadavg()[0], CpuTicks.now()
    with ExitStack() as stack:
        # Entered first, left last: the time that servers take to stop is the benchmark's own too.
        own = stack.enter_context(CpuMeter([os.getpid()], poll_s=None))
        report = progress or (lambda _what, _done, _all: None)
        report("preparing", 0, 1)
        setup = experiment.prepare(config, options, folder, stack)
        content = _manifest(experiment, config, options, folder, setup, packages, started_at)

        def finish(status: Status) -> Manifest:
            load = load_between(ticks, CpuTicks.now(), own.cpu_s)
            content.update(
                status=status,
                ended_at=datetime.now(timezone.utc).isoformat(),
                duration_s=time.perf_counter() - started,
                load={**load, "load_average_at_start": load_average},
            )
            return folder.write_manifest(content)

        folder.write_manifest(content)
        try:
            measurements = _measure(experiment, config, setup, folder, report)
        except KeyboardInterrupt:
            finish("interrupted")
            raise
        except BaseException:
            finish("failed")
            raise
        broken = not any(m.counted for m in measurements)
        manifest = finish("failed" if broken else "complete")
    if broken:
        first = next(m for m in measurements if m.error is not None)
        raise BenchmarkError(
            f"experiment {experiment.name!r}: all {len(measurements)} measurements failed; the "
            f"first, of {first.system}: {first.error}",
            hint=f"The result folder {folder.path} holds each error and the servers' logs.",
        )
    summary = summarise(
        folder.uid, experiment.name, experiment.title, experiment.metrics, setup.claims,
        measurements, config.seed,
    )  # fmt: skip
    folder.write_json(SUMMARY, _stored(summary, experiment.metrics, setup.claims))
    folder.write_text(REPORT, markdown(summary, manifest))
    return RunResult(folder, manifest, summary)


def load(path: Path) -> RunResult:
    """Read a result folder and compute its figures again from the raw data.

    Raises:
        BenchmarkError: ``path`` is no result folder, or the run did not complete.
        CorruptFileError: a file is missing, damaged, or of another schema version.
    """
    folder = ResultFolder.open(path)
    manifest = folder.read_manifest()
    if manifest.status != "complete":
        raise BenchmarkError(
            f"the run in {path} is {manifest.status}: it has no figures.",
            hint=f"{MEASUREMENTS}.jsonl keeps what it measured; run the experiment again.",
        )
    stored = folder.read_json(SUMMARY)
    try:
        metrics = [Metric(**metric) for metric in stored["metrics"]]
        claims = [Claim(**claim) for claim in stored["declared_claims"]]
        measurements = [Measurement.from_json(line) for line in folder.read(MEASUREMENTS)]
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path} holds a field of another shape: {error}.",
            hint=f"It was written by SAGE {manifest.sage_version}; read it with that version.",
        ) from error
    summary = summarise(
        folder.uid, manifest.exp, manifest.title, metrics, claims, measurements, manifest.seed
    )
    return RunResult(folder, manifest, summary)


def _stored(summary: Summary, metrics: tuple[Metric, ...], claims: Any) -> dict[str, Any]:
    return {
        **summary.to_json(),
        "metrics": [asdict(metric) for metric in metrics],
        "declared_claims": [asdict(claim) for claim in claims],
    }


def _measure(
    experiment: Experiment,
    config: RunConfig,
    setup: Setup,
    folder: ResultFolder,
    report: Progress,
) -> list[Measurement]:
    rounds = experiment.rounds_of(config)
    turns = sum(
        rounds * len(arranged(case, experiment.noise_row).systems)
        + experiment.warmup * len(case.systems)
        for case in setup.cases
    )
    measurements: list[Measurement] = []
    report("warm-up", 0, turns)
    for measurement in interleave(
        setup.cases,
        rounds=rounds,
        warmup=experiment.warmup,
        order=experiment.order,
        pause_s=experiment.pause_s,
        noise_row=experiment.noise_row,
    ):
        folder.append(MEASUREMENTS, measurement.to_json())
        measurements.append(measurement)
        where = "warm-up" if measurement.warmup else f"round {measurement.round + 1}/{rounds}"
        case = f" {measurement.case}" if measurement.case else ""
        report(f"{where}{case}: {measurement.system}", len(measurements), turns)
    return measurements


def _manifest(
    experiment: Experiment,
    config: RunConfig,
    options: Options,
    folder: ResultFolder,
    setup: Setup,
    packages: list[str],
    started_at: datetime,
) -> dict[str, Any]:
    systems = [
        {
            "case": case.name,
            "name": system.name,
            "role": system.role,
            "version": system.version,
            "config": dict(system.config),
            "config_sha256": config_hash(system.config),
        }
        for case in setup.cases
        for system in arranged(case, experiment.noise_row).systems
    ]
    extra = sorted(p.name for p in folder.path.glob("*.jsonl"))
    return {
        "schema_version": SCHEMA_VERSION,
        "uid": folder.uid,
        "exp": experiment.name,
        "number": experiment.number,
        "title": experiment.title,
        "status": "running",
        "claims": [claim.text for claim in setup.claims],
        "expectation": experiment.expectation,
        "git": describe_checkout(Path(__file__)),
        "sage_version": __version__,
        "command": config.command or _called(experiment),
        "options": {**options.model_dump(mode="json"), **_facts(setup), "quick": config.quick},
        "seed": config.seed,
        "started_at": started_at.isoformat(),
        "ended_at": None,
        "duration_s": None,
        "hardware": describe_hardware(folder.path),
        "load": None,
        "software": describe_software(packages),
        "backend_kind": setup.backend_kind,
        "systems": systems,
        "models": [model.model_dump() for model in setup.models],
        "workload": setup.workload.model_dump(),
        "warmup": {"rounds": experiment.warmup},
        "rounds": experiment.rounds_of(config),
        "order": experiment.order,
        "pause_s": experiment.pause_s,
        "slo": setup.slo,
        "raw_files": [*extra, f"{MEASUREMENTS}.jsonl"],
    }


def _facts(setup: Setup) -> Mapping[str, Any]:
    return {"found_before_timing": setup.facts} if setup.facts else {}


def _called(experiment: Experiment) -> list[str]:
    return [Path(sys.argv[0]).name, f"{type(experiment).__module__}.run"]


__all__ = ["MANIFEST", "Progress", "RunResult", "execute", "load"]
