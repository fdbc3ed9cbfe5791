"""Partitions on their way through the stages: submission, backpressure, outcomes, failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Crashed

from sage_prefect.common.errors import ClusterError, PipelineError, SageError
from sage_prefect.kernel.plan import Partition, Plan
from sage_prefect.kernel.stage import StageOutput
from sage_prefect.orchestration.dask_failures import dask_failures
from sage_prefect.orchestration.placed_task import PlacedTask
from sage_prefect.orchestration.stage_task import StageCall


@dataclass(frozen=True)
class PartitionRun:
    """One partition in flight: one future per stage. Each is passed to the next as it is, so that
    rows stay on the workers and no stage waits for another partition."""

    partition: Partition
    futures: tuple[PrefectFuture[Any], ...]


class PartitionRuns:
    """Runs partitions with a bound on how many are in flight.

    Args:
        plan: what to run.
        tasks: one per stage.
        max_in_flight: partitions that are submitted and not finished; bounds the rows that workers
            hold between stages.
        on_stage_done: called with a stage's index whenever a partition has left it.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[PlacedTask],
        max_in_flight: int,
        on_stage_done: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._tasks = tasks
        self._max_in_flight = max_in_flight
        self._on_stage_done = on_stage_done
        self._in_flight: dict[int, PartitionRun] = {}
        self._events: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def outcomes(
        self, partitions: Sequence[Partition]
    ) -> AsyncIterator[tuple[Partition, StageOutput]]:
        """Each partition with its last stage's output, in the order in which they finish.

        Raises:
            SageError: the error of the operator that failed, or a ClusterError.
        """
        waiting = list(reversed(partitions))
        while waiting or self._in_flight:
            while waiting and len(self._in_flight) < self._max_in_flight:
                self._submit(waiting.pop())
            index, stage = await self._events.get()
            self._on_stage_done(stage)
            if stage + 1 == len(self._plan.stages):
                run = self._in_flight.pop(index)
                try:
                    output = await asyncio.to_thread(output_of, run)
                except ClusterError as error:
                    await _mark_crashed(run, error)
                    raise
                yield run.partition, output

    async def finished(self) -> list[tuple[Partition, StageOutput]]:
        """Partitions in flight that are through already, for when another one has failed."""
        through = []
        for run in self._in_flight.values():
            if run.futures[-1].wrapped_future.done():  # type: ignore[attr-defined]
                try:
                    through.append((run.partition, await asyncio.to_thread(output_of, run)))
                except SageError as error:
                    # One failure is raised; this one will come again in the next run.
                    get_run_logger().error("%s", error)
        return through

    def futures(self) -> list[PrefectFuture[Any]]:
        """Those of all partitions in flight."""
        return [future for run in self._in_flight.values() for future in run.futures]

    def _submit(self, partition: Partition) -> None:
        futures: list[PrefectFuture[Any]] = []
        for stage, task in zip(self._plan.stages, self._tasks, strict=True):
            call = StageCall(stage, partition, self._plan.context)
            future = task.submit(call, *futures[-1:])
            futures.append(future)
            future.add_done_callback(self._callback(partition.index, stage.index))
        self._in_flight[partition.index] = PartitionRun(partition, tuple(futures))

    def _callback(self, index: int, stage: int) -> Callable[[Any], None]:
        # Runs in a thread of Dask's client.
        def done(_: Any) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, stage))

        return done


async def _mark_crashed(run: PartitionRun, error: ClusterError) -> None:
    """End the task runs of ``run`` in the UI: the worker that should have done so is dead."""
    async with get_client() as client:
        for future in run.futures:
            try:
                recorded = await client.read_task_run(future.task_run_id)
                if not recorded.state or not recorded.state.is_final():
                    state: State[Any] = Crashed(message=error.message)
                    await client.set_task_run_state(future.task_run_id, state, force=True)
            except ObjectNotFound:
                continue  # it never began


def output_of(run: PartitionRun) -> StageOutput:
    """The last stage's output of a partition that is through. Blocks for the transfer.

    Raises:
        SageError: why it failed.
    """
    last = _state(run, len(run.futures) - 1)
    if last.is_completed():
        output: StageOutput = last.result(_sync=True)  # type: ignore[call-overload]
        return output
    # From the end: stages after the failed one did not start. Those before it hold rows, which
    # there is no need to fetch.
    for position in reversed(range(len(run.futures))):
        state = _state(run, position)
        if state.is_failed() or state.is_crashed():
            raise _error(state, run)
    raise PipelineError(
        f"partition {run.partition.label} ended as {last.type.value}: {last.message}"
    )


def _state(run: PartitionRun, position: int) -> State[Any]:
    with dask_failures(run.partition.label):
        state: State[Any] = run.futures[position].wrapped_future.result()  # type: ignore[attr-defined]
    return state


def _error(state: State[Any], run: PartitionRun) -> Exception:
    error = state.result(raise_on_failure=False, _sync=True)  # type: ignore[call-overload]
    if isinstance(error, SageError):
        return error
    return PipelineError(
        f"partition {run.partition.label} failed: {state.message or state.type.value}"
    )
