"""The ``prefect`` runner: pipelines as Prefect flows, operators as Prefect tasks.

Loads Prefect when it is used, after this process has been told which server to talk to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sage_prefect.orchestration.connection import require_server, use_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from sage_prefect.kernel.operator import Operator
    from sage_prefect.kernel.pipeline import Pipeline
    from sage_prefect.kernel.report import RunReport


class PrefectRunner:
    """The runner behind ``Pipeline.to_flow()`` and ``Operator.as_task()``."""

    def to_flow(self, pipeline: Pipeline, **options: Any) -> Any:
        """An async Prefect flow of ``pipeline``; its parameters show as a form in the UI.

        Args:
            name: of the flow; default: the pipeline's.
            cluster: a Dask scheduler's address; None: of the settings or of ``sage up``, looked up
                when the flow runs; ``"threads"``: no cluster, threads of the flow's process.
            runner: ``"sage"`` or ``"stock"``; None: as in the settings (``pipelines.runner``).
            granularity: ``"stage"`` or ``"operator"``: what gets a task run per partition.
            reuse, partitions, retries, retry_delay_s, max_in_flight: defaults of the flow's
                parameters; see :func:`sage_prefect.orchestration.plan_execution.run_in_flow`.

        Raises:
            PipelineError: the pipeline lacks a source or a sink, or an option is unknown.
        """
        use_server()
        from sage_prefect.orchestration.pipeline_flow import pipeline_flow

        return pipeline_flow(pipeline, **options)

    def run(
        self,
        pipeline: Pipeline,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> RunReport:
        """Make the flow, run it here to its end, and return its report.

        Args:
            on_progress: called with (partitions done, partitions in all).
            options: those of :meth:`to_flow`.

        Raises:
            ServiceError: no Prefect server is known.
            PipelineError, ClusterError: see ``run_in_flow``.
        """
        require_server()
        from sage_prefect.orchestration.pipeline_flow import pipeline_flow, run_to_end

        return run_to_end(pipeline_flow(pipeline, **options), on_progress)

    def operator_task(self, operator: Operator, **options: Any) -> Any:
        """A Prefect task of one operator; see ``Operator.as_task``.

        Args:
            resources: placement; default: the operator's own wish.
            options: those of ``prefect.task``.
        """
        use_server()
        from sage_prefect.orchestration.operator_task import operator_task

        return operator_task(operator, **options)
