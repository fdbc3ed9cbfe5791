"""A Prefect flow out of a pipeline."""

# No postponed annotations: a served flow travels to another process, where Prefect reads them, and
# names would not be found there.
import asyncio
import contextvars
import threading
from typing import Annotated, Any

from prefect import Flow
from prefect.exceptions import TerminationSignal
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from sage_prefect.common.errors import GraphError, UnknownNameError
from sage_prefect.common.settings import load_settings
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.report import RunReport
from sage_prefect.kernel.source import CollectionSource
from sage_prefect.orchestration.plan_execution import (
    Granularity,
    OnProgress,
    Reuse,
    on_progress,
    run_in_flow,
)
from sage_prefect.orchestration.task_runner import RunnerKind, make_task_runner

#: ``cluster="threads"``: run tasks in threads of the flow's own process.
THREADS = "threads"

AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


def cluster_task_runner(cluster: str | None = None, runner: RunnerKind | None = None) -> Any:
    """The task runner for flows on SAGE's Dask cluster.

    Args:
        cluster: a scheduler's address; None: looked up when a flow starts; ``"threads"``: none.
        runner: None: as in the settings (``pipelines.runner``).
    """
    if cluster == THREADS:
        return ThreadPoolTaskRunner(max_workers=4)
    return make_task_runner(runner or load_settings().pipelines.runner, cluster)


def pipeline_flow(
    pipeline: Pipeline,
    *,
    name: str | None = None,
    cluster: str | None = None,
    runner: RunnerKind | None = None,
    granularity: Granularity = "stage",
    reuse: Reuse = "unfinished",
    partitions: int | None = None,
    retries: int | None = None,
    retry_delay_s: float | None = None,
    max_in_flight: int | None = None,
    store: Any = None,
) -> Flow[..., Any]:
    """The flow of ``pipeline``; arguments as in ``PrefectRunner.to_flow``.

    Raises:
        GraphError: the pipeline lacks a source or a sink.
        UnknownNameError: an option's value is unknown.
    """
    missing = "source" if pipeline._source is None else "sink" if pipeline._sink is None else None
    if missing:
        raise GraphError(
            f"pipeline {pipeline.name!r} has no {missing}.", hint=f"Add .{missing}(...) to it."
        )
    for what, value, known in (
        ("runner", runner, ("sage", "stock", None)),
        ("granularity", granularity, ("stage", "operator")),
    ):
        if value not in known:
            raise UnknownNameError(what, str(value), [item for item in known if item])
    carried = _Carried(pipeline, granularity, store)
    defaults = (partitions, reuse, retries, retry_delay_s, max_in_flight)

    # Async: at the end of each sync flow Prefect waits a second for its heartbeat thread. The
    # docstring is what the UI's form shows.
    async def run(
        partitions: AtLeastOne | None = defaults[0],
        reuse: Reuse = defaults[1],
        retries: NotNegative | None = defaults[2],
        retry_delay_s: Seconds | None = defaults[3],
        max_in_flight: AtLeastOne | None = defaults[4],
    ) -> RunReport:
        """Run the pipeline.

        Args:
            partitions: How many to cut the input into; empty: so that one takes about 2 seconds.
            reuse: always: skip a run that was published for the same code, parameters and input;
                unfinished: resume an interrupted run; never: all anew.
            retries: Per task, on errors that may pass; empty: as in the settings.
            retry_delay_s: Seconds before the first retry, doubling; empty: as in the settings.
            max_in_flight: Partitions that workers hold at once; empty: as in the settings.
        """
        return await run_in_flow(
            carried.pipeline,
            partitions=partitions,
            reuse=reuse,
            retries=retries,
            retry_delay_s=retry_delay_s,
            max_in_flight=max_in_flight,
            granularity=carried.granularity,
            store=carried.store,
        )

    return Flow(
        fn=run,
        name=name or pipeline.name,
        description=repr(pipeline),
        task_runner=cluster_task_runner(cluster, runner),
        persist_result=False,
        validate_parameters=True,
    )


class _Carried:
    """What the flow's function closes over; travels when the flow is served from a subprocess."""

    def __init__(self, pipeline: Pipeline, granularity: Granularity, store: Any) -> None:
        self.pipeline = pipeline
        self.granularity = granularity
        self.store = store

    def __getstate__(self) -> dict[str, Any]:
        # On its way to a worker a collection leaves its rows behind: here they are needed.
        rows = [
            source.rows if isinstance(source, CollectionSource) else None
            for source in self.pipeline.sources
        ]
        return {**self.__dict__, "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = state.pop("rows")
        self.__dict__.update(state)
        for source, kept in zip(self.pipeline.sources, rows, strict=True):
            if isinstance(source, CollectionSource):
                source.rows = kept


def run_to_end(flow: Flow[..., Any], progress: OnProgress | None = None) -> RunReport:
    """Call ``flow`` and wait for its report, whether or not an event loop runs here."""
    token = on_progress.set(progress)
    try:
        work: Any = flow()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _to_its_end(work)
        return _in_a_thread(work)
    finally:
        on_progress.reset(token)


def _to_its_end(work: Any) -> RunReport:
    try:
        report: RunReport = asyncio.run(work)
    except TerminationSignal as error:
        # Prefect's own handler of SIGTERM; for a caller it is an interrupt like Ctrl-C.
        raise KeyboardInterrupt from error
    return report


def _in_a_thread(work: Any) -> RunReport:
    """For notebooks, whose event loop runs already."""
    outcome: list[RunReport] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(_to_its_end(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="pipeline")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
