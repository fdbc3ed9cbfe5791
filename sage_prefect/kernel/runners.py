"""Runners by name, through the entry-point group ``sage_prefect.runners``.

The kernel knows no runner but its own; ``Pipeline.to_flow()`` finds Prefect's here, so that
nothing is imported upward.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from sage_prefect.common.errors import MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from sage_prefect.kernel.operator import Operator
    from sage_prefect.kernel.pipeline import Pipeline
    from sage_prefect.kernel.report import RunReport

GROUP = "sage_prefect.runners"


class Runner(Protocol):
    """What a runner can do; one that cannot do a thing raises a PipelineError that says so."""

    def run(self, pipeline: Pipeline, **options: Any) -> RunReport:
        """Run the pipeline to its end."""

    def to_flow(self, pipeline: Pipeline, **options: Any) -> Any:
        """Make a Prefect flow of the pipeline."""

    def operator_task(self, operator: Operator, **options: Any) -> Any:
        """Make a Prefect task of one operator."""


def runner(name: str) -> Runner:
    """The runner registered under ``name``.

    Raises:
        UnknownNameError: no such runner.
        MissingDependencyError: its packages are not installed.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise UnknownNameError("runner", name, found)
    try:
        made: Runner = found[name].load()()
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root in {"prefect", "prefect_dask", "dask", "distributed"}:
            raise MissingDependencyError(root, "pipelines", f"runner {name!r}") from error
        raise
    return made
