"""The experiments by name. Adding one adds its file and a line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from sage_bench.experiment import Experiment
from sage_prefect.common.errors import UnknownNameError

# name -> module (loaded on use: an experiment may need Prefect, Dask or torch) and class
EXPERIMENTS = {
    "imports": ("sage_bench.experiments.imports", "Imports"),
    "ingest": ("sage_bench.experiments.ingest", "Ingest"),
    "orchestration": ("sage_bench.experiments.orchestration", "Orchestration"),
    "overhead": ("sage_bench.experiments.overhead", "Overhead"),
    "quickstart": ("sage_bench.experiments.quickstart", "Quickstart"),
    "vectors": ("sage_bench.experiments.vectors", "VectorSearch"),
}


def names() -> list[str]:
    """Known experiments, sorted."""
    return sorted(EXPERIMENTS)


def get(name: str) -> Experiment:
    """The experiment ``name``.

    Raises:
        UnknownNameError: lists the known ones.
    """
    if name not in EXPERIMENTS:
        raise UnknownNameError("experiment", name, EXPERIMENTS)
    module, cls = EXPERIMENTS[name]
    return cast("type[Experiment]", getattr(import_module(module), cls))()
