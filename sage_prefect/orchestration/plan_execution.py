"""Run a pipeline inside the current Prefect flow run."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect_dask import DaskTaskRunner

from sage_prefect.common.errors import ClusterError, PipelineError
from sage_prefect.common.settings import load_settings
from sage_prefect.kernel.commit_log import CommitLog, RunStore
from sage_prefect.kernel.execution import ChainRun, Run, with_run_id
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.report import RunReport
from sage_prefect.orchestration.artifacts import Progress, show_plan, show_report
from sage_prefect.orchestration.partition_runs import PartitionRuns
from sage_prefect.orchestration.preflight import Offers, check_schedulable
from sage_prefect.orchestration.stage_task import split_by_operator, stage_task
from sage_prefect.platform.run_store import FileRunStore

Granularity = Literal["stage", "operator"]
Reuse = Literal["always", "unfinished", "never"]
OnProgress = Callable[[int, int], None]

# For a caller in the same process. A context variable, because the flow itself may be pickled.
on_progress: contextvars.ContextVar[OnProgress | None] = contextvars.ContextVar(
    "on_progress", default=None
)


async def run_in_flow(
    pipeline: Pipeline,
    *,
    partitions: int | None = None,
    reuse: Reuse = "unfinished",
    retries: int | None = None,
    retry_delay_s: float | None = None,
    max_in_flight: int | None = None,
    granularity: Granularity = "stage",
    store: RunStore | None = None,
) -> RunReport:
    """Run ``pipeline`` as tasks of the flow run that calls this: one per (stage, partition).

    Example:
        ```python
        @flow(task_runner=cluster_task_runner())
        async def ingest(folder: str) -> None:
            await run_in_flow(ingest_pipeline(folder))
        ```

    Args:
        partitions: how many to cut; None: by the planner.
        reuse: ``always``: skip a run that was published for the same code, parameters and input;
            ``unfinished``: keep the finished partitions of an interrupted run; ``never``.
        retries, retry_delay_s, max_in_flight: None: as in the settings (``pipelines.*``).
        granularity: ``stage``: one task per (stage, partition); ``operator``: one per (operator,
            partition).
        store: the commit log's storage; None: files in the state directory.

    Raises:
        PipelineError: the pipeline cannot run, or an operator failed for good.
        UnschedulableError: no worker can ever meet a wish of it.
        ClusterError: the Dask cluster cannot be reached, or lost its workers.
    """
    flow_run = FlowRunContext.get()
    if flow_run is None or flow_run.flow_run is None:
        raise PipelineError(
            "run_in_flow() was called outside of a flow run.",
            hint="Use pipeline.to_flow()(), or call it in a function under @flow.",
        )
    settings = load_settings().pipelines
    log = get_run_logger()
    plan = await asyncio.to_thread(pipeline.plan, partitions=partitions)
    plan = with_run_id(plan, str(flow_run.flow_run.id))
    if granularity == "operator":
        plan = split_by_operator(plan)
    runner = flow_run.task_runner
    if isinstance(runner, DaskTaskRunner):
        offers = _offers(runner)
        for chain_plan in plan.chains:
            check_schedulable(chain_plan, offers)
    await show_plan(plan)
    commits = CommitLog(store if store is not None else FileRunStore())
    run = await asyncio.to_thread(Run, plan, commits, reuse)
    chains = run.chains()
    while (chain := await asyncio.to_thread(next, chains, None)) is not None:
        if chain.reused:
            log.info(
                "%d of %d partition(s) are finished already",
                chain.reused,
                len(chain.plan.partitions),
            )
        async with Progress(chain.plan, done=chain.reused) as progress:
            tasks = [
                stage_task(
                    chain.plan,
                    stage,
                    retries=settings.retries if retries is None else retries,
                    retry_delay_s=settings.retry_delay_s
                    if retry_delay_s is None
                    else retry_delay_s,
                )
                for stage in chain.plan.stages
            ]
            bound = settings.max_in_flight if max_in_flight is None else max_in_flight
            await _run_all(
                run, chain, PartitionRuns(chain.plan, tasks, bound, progress.add), runner
            )
        await asyncio.to_thread(chain.end)
    report = run.report()
    if run.skipped:
        log.info("nothing to do: published before as %s", report.committed.location)
    else:
        log.info(
            "published %d row(s) to %s in %.1f s",
            report.committed.rows,
            report.committed.location,
            report.seconds,
        )
    await show_report(report)
    return report


async def _run_all(run: Run, chain: ChainRun, runs: PartitionRuns, runner: Any) -> None:
    """Run what is to do of ``chain``; each partition is on record as soon as it is through."""
    report_progress = on_progress.get()
    try:
        async for _, output in runs.outcomes(chain.todo):
            chain.record(output)
            if report_progress:
                report_progress(*run.progress)
    except Exception:
        for _, output in await runs.finished():
            chain.record(output)
        get_run_logger().error(
            "%d of %d partition(s) are finished and stay so: running again resumes there",
            *run.progress,
        )
        raise
    finally:
        # After a failure or a cancellation (Ctrl-C, the UI's button) nothing more is to start.
        cancel_futures(runner, runs)


def cancel_futures(runner: Any, runs: PartitionRuns) -> None:
    """Cancel what is in flight; tasks that a worker has begun end by themselves."""
    left = [future.wrapped_future for future in runs.futures()]  # type: ignore[attr-defined]
    if not left:
        return
    if not isinstance(runner, DaskTaskRunner):
        for future in left:
            future.cancel()
    elif runner.client.status == "running":
        runner.client.cancel(left, force=True)


def _offers(runner: Any) -> Offers:
    """What each worker of the cluster offers, by worker name."""
    client = runner.client
    if client.status != "running":
        raise ClusterError(f"the connection to the Dask cluster is {client.status}.")
    workers = client.scheduler_info()["workers"]
    return {str(worker["name"]): worker["resources"] for worker in workers.values()}
