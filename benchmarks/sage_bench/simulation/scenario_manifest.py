"""The manifest of a run of a scenario, simulated or live."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sage_bench.machine import CpuTicks, describe_hardware, load_between
from sage_bench.manifest import SCHEMA_VERSION, BackendKind, config_hash
from sage_bench.result_folder import ResultFolder
from sage_bench.simulation.scenario import ScenarioSpec
from sage_bench.software import (
    describe_checkout,
    describe_software,
    installed_packages,
    packages_text,
)
from sage_prefect import __version__
from sage_prefect.common.paths import atomic_write


@dataclass(frozen=True)
class ScenarioRun:
    """What a manifest says beyond the scenario.

    Args:
        experiment: the folder's name.
        backend: what stood behind the figures.
        command: what was typed.
        options: beside the scenario.
        seeds: as used.
        systems: label, role and configuration of each.
        items: requests, all runs together.
        order: of the runs.
        raw_files: in the folder.
        cpu_s: used by this process and its children.
    """

    experiment: str
    backend: BackendKind
    command: Sequence[str]
    options: Mapping[str, Any]
    seeds: Sequence[int]
    systems: Sequence[tuple[str, str, Mapping[str, Any]]]
    items: int
    order: str
    raw_files: Sequence[str]
    cpu_s: float


class ManifestWriter:
    """Made when a run begins; writes the manifest when it has ended.

    Args:
        folder: gets ``packages.txt`` at once.
        spec: the scenario.
    """

    def __init__(self, folder: ResultFolder, spec: ScenarioSpec) -> None:
        self._folder, self._spec = folder, spec
        self._packages = installed_packages()
        atomic_write(folder.path / "packages.txt", packages_text(self._packages))
        self._started_at, self._started = datetime.now(timezone.utc), time.perf_counter()
        self._load_average, self._ticks = os.getloadavg()[0], CpuTicks.now()

    def write(self, run: ScenarioRun) -> None:
        """Write it.

        Raises:
            CorruptFileError: a value does not fit the schema.
        """
        spec, workloads = self._spec, self._spec.workloads
        load = load_between(self._ticks, CpuTicks.now(), run.cpu_s)
        self._folder.write_manifest(
            {
                "schema_version": SCHEMA_VERSION,
                "uid": self._folder.uid,
                "exp": run.experiment,
                "number": "-",
                "title": spec.about or spec.name,
                "status": "complete",
                "claims": [],
                "expectation": spec.about or "none",
                "git": describe_checkout(Path(__file__)),
                "sage_version": __version__,
                "command": list(run.command),
                "options": {"scenario": spec.model_dump(mode="json"), **run.options},
                "seed": run.seeds[0],
                "started_at": self._started_at.isoformat(),
                "ended_at": datetime.now(timezone.utc).isoformat(),
                "duration_s": time.perf_counter() - self._started,
                "hardware": describe_hardware(self._folder.path),
                "load": {**load, "load_average_at_start": self._load_average},
                "software": describe_software(self._packages),
                "backend_kind": run.backend,
                "systems": [
                    {
                        "case": spec.name,
                        "name": label,
                        "role": role,
                        "version": __version__,
                        "config": dict(config),
                        "config_sha256": config_hash(config),
                    }
                    for label, role, config in run.systems
                ],
                "models": [],
                "workload": {
                    "dataset": ", ".join(w.lengths for w in workloads),
                    "dataset_sha256": "none",
                    "items": run.items,
                    "sizes": {w.name: w.lengths for w in workloads},
                    "arrival": "; ".join(f"{w.name}: {w.arrival.process}" for w in workloads),
                    "mix": ", ".join(w.name for w in workloads),
                    "tenants": "; ".join(f"{w.name}: {w.tenants.count}" for w in workloads),
                },
                "warmup": {"rounds": 0},
                "rounds": len(run.seeds),
                "order": run.order,
                "pause_s": 0.0,
                "slo": {
                    f"{w.name}.{name}": 1000 * value
                    for w in workloads
                    for name, value in w.slo.model_dump().items()
                    if value is not None
                },
                "raw_files": list(run.raw_files),
            }
        )
