"""Run a pipeline in this process, one partition after the other: tests, notebooks, small data."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sage_prefect.common.errors import PipelineError
from sage_prefect.kernel.commit_log import CommitLog, MemoryStore, RunStore
from sage_prefect.kernel.execution import Run, with_run_id
from sage_prefect.kernel.operator import Operator
from sage_prefect.kernel.plan import Partition, Plan
from sage_prefect.kernel.report import RunReport
from sage_prefect.kernel.retries import run_with_retries
from sage_prefect.kernel.stage import StageOutput

if TYPE_CHECKING:
    from sage_prefect.kernel.pipeline import Pipeline


class LocalRunner:
    """The runner behind ``Pipeline.run()``."""

    def run(
        self,
        pipeline: Pipeline,
        *,
        partitions: int | None = None,
        reuse: str = "unfinished",
        store: RunStore | None = None,
        retries: int = 2,
        retry_delay_s: float = 0.5,
        on_progress: Callable[[int, int], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> RunReport:
        """Run ``pipeline`` to its end.

        Args:
            partitions: how many to cut; None: by the planner.
            reuse: see :class:`sage_prefect.kernel.execution.Run`.
            store: where finished partitions are recorded; None: in memory, nothing is reused.
            retries: repeats of a partition after a retryable error, with doubling delay.
            on_progress: called with (partitions done, partitions in all).

        Raises:
            PipelineError: the pipeline is not runnable, or an operator failed for good.
        """
        with ExitStack() as stack:
            folder = None
            if store is None:  # nothing is to outlive the run
                folder = stack.enter_context(TemporaryDirectory(prefix="sage-exchange-"))
            plan = pipeline.plan(partitions=partitions, exchange_dir=folder)
            log = CommitLog(store if store is not None else MemoryStore())
            run = Run(with_run_id(plan, uuid.uuid4().hex), log, reuse)
            for chain in run.chains():
                for partition in chain.todo:
                    chain.record(
                        self._partition(chain.plan, partition, retries, retry_delay_s, sleep)
                    )
                    if on_progress:
                        on_progress(*run.progress)
                chain.end()
            return run.report()

    def _partition(
        self,
        plan: Plan,
        partition: Partition,
        retries: int,
        delay: float,
        sleep: Callable[[float], None],
    ) -> StageOutput:
        output: StageOutput | None = None
        for stage in plan.stages:
            output = run_with_retries(
                stage,
                partition,
                plan.context,
                output,
                retries=retries,
                delay_s=delay,
                worker="local",
                sleep=sleep,
            )
        if output is None:
            raise PipelineError(f"the plan of {plan.pipeline!r} has no stages. This is a bug.")
        return output

    def to_flow(self, pipeline: Pipeline, **options: Any) -> Any:
        """Not a thing that the local runner can do."""
        raise PipelineError("the local runner makes no flows.", hint="Use runner 'prefect'.")

    def operator_task(self, operator: Operator, **options: Any) -> Any:
        """Not a thing that the local runner can do."""
        raise PipelineError("the local runner makes no tasks.", hint="Use runner 'prefect'.")
