"""Backpressure, order of outcomes, and what a failed partition says; futures are made by hand."""

from __future__ import annotations

import asyncio
import concurrent.futures
from types import SimpleNamespace
from uuid import uuid4

import pytest
from distributed import KilledWorker
from distributed.client import FutureCancelledError
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed, Pending

from sage_prefect.common.errors import ClusterError, OperatorError, PipelineError
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.stage import StageOutput
from sage_prefect.orchestration.partition_runs import PartitionRun, PartitionRuns, output_of

pytestmark = pytest.mark.leaks("Prefect keeps a thread for the coroutines of synchronous callers")


def _same(row):
    return row


def plan(partitions=5):
    return (
        Pipeline("p")
        .source([{"a": a} for a in range(64 * partitions)])
        .map(_same, resources=Resources(cpu=1))
        .map(_same, resources=Resources(gpu=1))
        .sink()
        .plan(partitions=partitions)
    )


class FakeTask:
    """Hands out futures that the test completes."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.futures: list[PrefectConcurrentFuture] = []

    def submit(self, *arguments):
        self.calls.append(arguments)
        self.futures.append(PrefectConcurrentFuture(uuid4(), concurrent.futures.Future()))
        return self.futures[-1]

    def complete(self, number, result=None):
        self.futures[number].wrapped_future.set_result(Completed(data=result))


async def test_partitions_in_flight_are_bounded_and_stages_need_no_barrier():
    made, tasks, seen = plan(), [FakeTask(), FakeTask()], []
    runs = PartitionRuns(made, tasks, 2, seen.append)
    outcomes = runs.outcomes(made.partitions)
    waiting = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    assert len(tasks[0].calls) == len(tasks[1].calls) == 2
    # The second stage was given the first one's future, not its result.
    assert tasks[1].calls[1][1] is tasks[0].futures[1]

    tasks[0].complete(1)
    tasks[1].complete(1, StageOutput([], rows=7))
    partition, output = await waiting
    assert (partition.index, output.rows) == (1, 7)
    assert sorted(seen) == [0, 1]

    waiting = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    assert len(tasks[0].calls) == 3
    assert len(runs.futures()) == 4
    tasks[1].complete(2, StageOutput([], rows=8))
    assert (await waiting)[0].index == 2
    await outcomes.aclose()


async def test_what_is_through_when_another_fails_is_found():
    made, tasks = plan(3), [FakeTask(), FakeTask()]
    runs = PartitionRuns(made, tasks, 3, lambda stage: None)
    outcomes = runs.outcomes(made.partitions)
    waiting = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    error = OperatorError("embed", "row is bad", partition="1/3")
    tasks[0].futures[0].wrapped_future.set_result(Failed(data=error))
    tasks[1].futures[0].wrapped_future.set_result(Pending(name="NotReady"))
    with pytest.raises(OperatorError, match="'embed' failed in partition 1/3"):
        await waiting
    tasks[1].complete(2, StageOutput([], rows=9))
    assert [(p.index, output.rows) for p, output in await runs.finished()] == [(2, 9)]


def run_with(*outcomes):
    futures = []
    for outcome in outcomes:
        future = concurrent.futures.Future()
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)
        futures.append(PrefectConcurrentFuture(uuid4(), future))
    return PartitionRun(plan(2).partitions[0], tuple(futures))


KILLED = KilledWorker("work", SimpleNamespace(address="tcp://127.0.0.1:1"), 3)
CANCELLED = FutureCancelledError("key", "scheduler-connection-lost")


@pytest.mark.parametrize(
    ("outcomes", "kind", "words"),
    [
        ((KILLED, KILLED), ClusterError, ["died", "1/2", "memory"]),
        ((CANCELLED, CANCELLED), ClusterError, ["cancelled", "1/2", "sage status"]),
        ((None, ModuleNotFoundError("no 'x'")), PipelineError, ["1/2", "no 'x'", "packages"]),
        ((Failed(message="boom"), Pending()), PipelineError, ["1/2", "boom"]),
        ((Completed(), Pending(message="odd")), PipelineError, ["1/2", "PENDING", "odd"]),
    ],
)
def test_failures_say_which_partition_and_what_to_do(outcomes, kind, words):
    with pytest.raises(kind) as caught:
        output_of(run_with(*outcomes))
    for word in words:
        assert word in str(caught.value)
