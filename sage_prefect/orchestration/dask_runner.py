"""The ``dask`` runner: pipelines on Dask workers without Prefect, its server and its UI."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distributed import Client, as_completed, get_worker

from sage_prefect.common.errors import ClusterError, GraphError, PipelineError
from sage_prefect.kernel.commit_log import CommitLog, MemoryStore, RunStore
from sage_prefect.kernel.execution import ChainRun, Run, with_run_id
from sage_prefect.kernel.operator import OperatorContext
from sage_prefect.kernel.plan import Partition, Stage
from sage_prefect.kernel.retries import run_with_retries
from sage_prefect.kernel.stage import StageOutput
from sage_prefect.orchestration.dask_failures import dask_failures
from sage_prefect.orchestration.preflight import check_schedulable
from sage_prefect.orchestration.services import dask_address

if TYPE_CHECKING:
    from sage_prefect.kernel.operator import Operator
    from sage_prefect.kernel.pipeline import Pipeline
    from sage_prefect.kernel.report import RunReport

_CONNECT_LIMIT_S = 10.0


class DaskRunner:
    """The runner behind ``runner("dask")``."""

    def run(
        self,
        pipeline: Pipeline,
        *,
        cluster: str | Client | None = None,
        partitions: int | None = None,
        reuse: str = "unfinished",
        store: RunStore | None = None,
        retries: int = 2,
        retry_delay_s: float = 0.5,
        max_in_flight: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> RunReport:
        """Run ``pipeline`` to its end.

        Args:
            cluster: a scheduler's address or a connected client; None: of the settings or of
                ``sage up``.
            partitions: how many to cut; None: by the planner.
            reuse: see :class:`sage_prefect.kernel.execution.Run`.
            store: where finished partitions are recorded; None: in memory, nothing is reused.
            retries: repeats of a stage after a retryable error, with doubling delay.
            max_in_flight: partitions that workers hold at once.
            on_progress: called with (partitions done, partitions in all).

        Raises:
            ClusterError: the cluster cannot be reached, or lost its workers.
            UnschedulableError: no worker can ever meet a wish of it.
            PipelineError: the pipeline is not runnable, or an operator failed for good.
        """
        if max_in_flight < 1:
            raise GraphError(f"max_in_flight={max_in_flight} is not positive.")
        with ExitStack() as stack:
            client = stack.enter_context(_connected(cluster))
            folder = None
            if store is None:  # nothing is to outlive the run
                folder = stack.enter_context(TemporaryDirectory(prefix="sage-exchange-"))
            plan = pipeline.plan(partitions=partitions, exchange_dir=folder)
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offers = {str(worker["name"]): worker["resources"] for worker in workers}
            for chain_plan in plan.chains:
                check_schedulable(chain_plan, offers)
            log = CommitLog(store if store is not None else MemoryStore())
            run = Run(with_run_id(plan, uuid.uuid4().hex), log, reuse)
            work = functools.partial(_run_on_worker, retries=retries, delay_s=retry_delay_s)
            for chain in run.chains():
                for output in _outputs(client, chain, work, max_in_flight):
                    chain.record(output)
                    if on_progress:
                        on_progress(*run.progress)
                chain.end()
            return run.report()

    def to_flow(self, pipeline: Pipeline, **options: Any) -> Any:
        """Not a thing that this runner can do."""
        raise PipelineError("the dask runner makes no flows.", hint="Use runner 'prefect'.")

    def operator_task(self, operator: Operator, **options: Any) -> Any:
        """Not a thing that this runner can do."""
        raise PipelineError("the dask runner makes no tasks.", hint="Use runner 'prefect'.")


def _outputs(
    client: Client, chain: ChainRun, work: Callable[..., StageOutput], max_in_flight: int
) -> Iterator[StageOutput]:
    """The last stage's output of each partition, as they finish. Between stages rows stay on the
    workers; later stages go first, so that partitions are finished rather than begun."""
    waiting = list(reversed(chain.todo))
    flying: dict[Any, Partition] = {}
    finished = as_completed(loop=client.loop, raise_errors=False)
    prefix = f"{chain.plan.pipeline}-{uuid.uuid4().hex[:8]}"

    def submit(partition: Partition) -> None:
        future: Any = None
        for stage in chain.plan.stages:
            future = client.submit(
                work,
                stage,
                partition,
                chain.plan.context,
                future,
                key=f"{prefix}-{chain.plan.first_stage + stage.index}-{partition.index}",
                resources=stage.resources.counters() or None,
                priority=stage.index,
                pure=False,
            )
        flying[future] = partition
        finished.add(future)

    try:
        while waiting or flying:
            while waiting and len(flying) < max_in_flight:
                submit(waiting.pop())
            future = next(finished)
            with dask_failures(flying[future].label):
                output = future.result()
            del flying[future]
            yield output
    finally:
        # After a failure nothing more is to start; what a worker has begun ends by itself.
        if flying and client.status == "running":
            client.cancel(list(flying), force=True)


def _run_on_worker(
    stage: Stage,
    partition: Partition,
    context: OperatorContext,
    upstream: StageOutput | None,
    *,
    retries: int,
    delay_s: float,
) -> StageOutput:
    return run_with_retries(
        stage,
        partition,
        context,
        upstream,
        retries=retries,
        delay_s=delay_s,
        worker=str(get_worker().name),
    )


@contextmanager
def _connected(cluster: str | Client | None) -> Iterator[Client]:
    if isinstance(cluster, Client):
        yield cluster
        return
    address = cluster or dask_address()
    if address is None:
        raise ClusterError(
            "no Dask scheduler is known.",
            hint="Run `sage up`, or give cluster= an address or a distributed.Client.",
        )
    try:
        client = Client(address, timeout=_CONNECT_LIMIT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"cannot reach the Dask scheduler at {address}: {error}", hint="See `sage status`."
        ) from error
    with client:
        yield client
