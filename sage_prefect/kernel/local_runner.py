"""Run a pipeline in this process, one partition after the other: tests, notebooks, small data."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sage_prefect.common.errors import OperatorError, PipelineError
from sage_prefect.kernel.commit_log import CommitLog, MemoryStore, RunStore
from sage_prefect.kernel.operator import Operator
from sage_prefect.kernel.plan import Partition, Plan
from sage_prefect.kernel.report import RunReport, StageReport
from sage_prefect.kernel.sink import Committed, Receipt
from sage_prefect.kernel.stage import StageOutput, run_stage

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
            reuse: see :func:`settle`.
            store: where finished partitions are recorded; None: in memory, nothing is reused.
            retries: repeats of a partition after a retryable error, with doubling delay.
            on_progress: called with (partitions done, partitions in all).

        Raises:
            PipelineError: the pipeline is not runnable, or an operator failed for good.
        """
        started = time.perf_counter()
        plan = with_run_id(pipeline.plan(partitions=partitions), uuid.uuid4().hex)
        log = CommitLog(store if store is not None else MemoryStore())
        earlier = settle(plan, log, reuse)
        if isinstance(earlier, RunReport):
            return earlier
        receipts: list[Receipt] = []
        reports: list[StageReport] = []
        for partition in plan.partitions:
            if partition.key in earlier:
                receipt, done = earlier[partition.key]
            else:
                output = self._partition(plan, partition, retries, retry_delay_s, sleep)
                receipt, done = finished(output), output.reports
                log.finish(receipt, done)
            receipts.append(receipt)
            reports += done
            if on_progress:
                on_progress(len(receipts), len(plan.partitions))
        committed = publish(plan, receipts, reports, log)
        return RunReport(
            plan.pipeline,
            plan.context.run_id,
            time.perf_counter() - started,
            reports,
            committed,
            len(plan.partitions),
            len(earlier),
        )

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
            for attempt in range(retries + 1):
                try:
                    output = run_stage(stage, partition, plan.context, output, worker="local")
                    output.reports[-1].retries = attempt
                    break
                except OperatorError as error:
                    last = attempt == retries
                    if last or stage.on_error == "fail" or not error.retryable:
                        raise
                    sleep(delay * 2**attempt)
        if output is None:
            raise PipelineError(f"the plan of {plan.pipeline!r} has no stages. This is a bug.")
        return output

    def to_flow(self, pipeline: Pipeline, **options: Any) -> Any:
        """Not a thing that the local runner can do."""
        raise PipelineError("the local runner makes no flows.", hint="Use runner 'prefect'.")

    def operator_task(self, operator: Operator, **options: Any) -> Any:
        """Not a thing that the local runner can do."""
        raise PipelineError("the local runner makes no tasks.", hint="Use runner 'prefect'.")


Finished = dict[str, tuple[Receipt, list[StageReport]]]
REUSE = ("always", "unfinished", "never")


def settle(plan: Plan, log: CommitLog, reuse: str) -> RunReport | Finished:
    """What of ``plan`` need not run again.

    Args:
        reuse: ``"always"``: a run whose code, parameters and input are those of a published one is
            skipped whole, and finished partitions of an interrupted one are kept;
            ``"unfinished"``: only the latter; ``"never"``: all runs anew.

    Returns:
        The report of the earlier run when nothing is left to do, else the finished partitions by
        key.

    Raises:
        PipelineError: ``reuse`` is unknown.
    """
    if reuse not in REUSE:
        raise PipelineError(f"reuse={reuse!r} is unknown.", hint=f"Known: {', '.join(REUSE)}.")
    if reuse == "never":
        return {}
    sink = plan.stages[-1].sink
    if sink is None:
        raise PipelineError(f"the plan of {plan.pipeline!r} has no sink. This is a bug.")
    if reuse == "always":
        published = log.published(plan.key)
        if published is not None and sink.current(published[0]):
            committed, reports = published
            kept = [dataclasses.replace(report, reused=True) for report in reports]
            count = len(plan.partitions)
            return RunReport(plan.pipeline, plan.context.run_id, 0.0, kept, committed, count, count)
    found: Finished = {}
    for partition in plan.partitions:
        entry = log.finished(partition.key)
        if entry is None:
            continue
        receipt, reports = entry
        if sink.holds(receipt):
            receipt = dataclasses.replace(receipt, index=partition.index)
            kept = [
                dataclasses.replace(report, reused=True, partition=partition.index)
                for report in reports
            ]
            found[partition.key] = (receipt, kept)
    return found


def finished(output: StageOutput) -> Receipt:
    """The receipt of a partition that went through the last stage."""
    if output.receipt is None:
        raise PipelineError("the last stage left no receipt. This is a bug.")
    return output.receipt


def publish(
    plan: Plan, receipts: list[Receipt], reports: list[StageReport], log: CommitLog
) -> Committed:
    """Commit the sink once, record it, and forget the partitions that it has taken in."""
    sink = plan.stages[-1].sink
    if sink is None:
        raise PipelineError(f"the plan of {plan.pipeline!r} has no sink. This is a bug.")
    ordered = sorted(receipts, key=lambda receipt: receipt.index)
    expected = sum(receipt.rows for receipt in ordered)
    letters = [letter for report in reports for letter in report.dead_letters]
    if not expected and letters:
        # The sink could only say that it got nothing; the reason is here.
        raise PipelineError(
            f"nothing reached sink {sink.name!r} of pipeline {plan.pipeline!r}: all of it was set "
            f"aside ({len(letters)} dead letter(s)). First: {letters[0].error}",
            hint="What was published before stays as it was.",
        )
    committed = sink.commit(ordered)
    if committed.rows != expected:
        raise PipelineError(
            f"sink {sink.name!r} published {committed.rows} row(s) of {expected} staged.",
            hint="Nothing downstream should rely on it; run again.",
        )
    log.publish(plan.key, committed, reports)
    for receipt in ordered:
        log.forget(receipt.partition)
    return committed


def with_run_id(plan: Plan, run_id: str) -> Plan:
    """``plan`` for the run ``run_id``."""
    return dataclasses.replace(plan, context=dataclasses.replace(plan.context, run_id=run_id))
