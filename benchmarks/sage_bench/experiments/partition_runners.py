"""Ways to run many independent partitions on one Dask cluster; each client lives in a worker."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from sage_bench.worker import timed


def partition(index: int, work_ms: float) -> int:
    """What a partition does: spend ``work_ms`` of CPU, and say which one it was."""
    end = time.process_time() + work_ms / 1000
    while time.process_time() < end:
        pass
    return index


class PartitionRunner:
    """A client of the cluster."""

    def run(self, count: int, work_ms: float) -> list[int]:
        """The results of partitions 0 to ``count`` - 1."""
        raise NotImplementedError

    def measure(self, count: int, work_ms: float) -> dict[str, float]:
        """Wall time of all, and this process's CPU time.

        Raises:
            ValueError: a partition's result is missing or wrong.
        """
        cost, results = timed(lambda: self.run(count, work_ms))
        if sorted(results) != list(range(count)):
            raise ValueError(f"{len(results)} results, not those of {count} partitions")
        return cost


class PlainDask(PartitionRunner):
    """``Client.map``, one Dask task per partition: the peer."""

    def __init__(self, address: str) -> None:
        from distributed import Client

        self._client = Client(address)

    def run(self, count: int, work_ms: float) -> list[int]:
        futures = self._client.map(partition, range(count), work_ms=work_ms, pure=False)
        return list(self._client.gather(futures))


class PrefectTasks(PartitionRunner):
    """A flow that submits one Prefect task per partition through a task runner."""

    def __init__(self, address: str, runner: str) -> None:
        from prefect import flow, task
        from prefect.cache_policies import NO_CACHE

        from sage_prefect.orchestration.task_runner import make_task_runner

        # Named like SAGE's own partitions; nothing to look up, nothing to keep.
        named = task(task_run_name="partition[{index}]", cache_policy=NO_CACHE, retries=2)
        run_partition = named(partition)

        @flow(name="partitions", task_runner=make_task_runner(runner, address))  # type: ignore[arg-type]
        async def partitions(count: int, work_ms: float) -> list[int]:
            futures = [run_partition.submit(index, work_ms) for index in range(count)]
            return [future.result() for future in futures]

        self._flow: Any = partitions

    def run(self, count: int, work_ms: float) -> list[int]:
        return list(asyncio.run(self._flow(count, work_ms)))


class PipelineFlow(PartitionRunner):
    """A SAGE pipeline as a Prefect flow: plan, partitions of one row, counts at each stage edge,
    commits to the run store, and the report."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._numbers = itertools.count()

    def run(self, count: int, work_ms: float) -> list[int]:
        from sage_prefect import Pipeline
        from sage_prefect.kernel.source import CollectionSource
        from sage_prefect.orchestration.flow_builder import PrefectRunner

        # A number per run: none may find the partitions of another and reuse them.
        run = next(self._numbers)
        rows = [{"index": index, "work_ms": work_ms, "run": run} for index in range(count)]
        pipeline = (
            Pipeline("partitions")
            .source(CollectionSource(rows, rows_per_part=1))
            .map(_row, reads=("index", "work_ms"), adds=("done",), name="work")
            .sink()
        )
        report = PrefectRunner().run(
            pipeline, cluster=self._address, reuse="never", partitions=count
        )
        assert report.committed is not None
        return [int(index) for index in report.committed.data.column("done").to_pylist()]


def _row(row: dict[str, Any]) -> dict[str, int]:
    return {"done": partition(row["index"], row["work_ms"])}
