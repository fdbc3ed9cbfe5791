"""The Prefect task that runs one stage of one partition on a worker."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from sage_prefect.common.errors import OperatorError
from sage_prefect.kernel.operator import OperatorContext
from sage_prefect.kernel.plan import Partition, Plan, Stage
from sage_prefect.kernel.retries import retry_delays
from sage_prefect.kernel.stage import StageOutput, run_stage
from sage_prefect.orchestration.placed_task import PlacedTask


class StageCall:
    """What a stage task runs. No dataclass: Prefect would search it for futures, item by item."""

    def __init__(self, stage: Stage, partition: Partition, context: OperatorContext) -> None:
        self.stage = stage
        self.partition = partition
        self.context = context
        self.name = f"{stage.name}[{partition.index + 1}/{partition.count}]"


def run_stage_call(call: StageCall, upstream: StageOutput | None = None) -> StageOutput:
    """Run the stage; ``upstream`` is what the stage before left for this partition."""
    output = run_stage(call.stage, call.partition, call.context, upstream, worker=_this_worker())
    output.reports[-1].retries = _retries_so_far()
    return output


def stage_task(plan: Plan, stage: Stage, *, retries: int, retry_delay_s: float) -> PlacedTask:
    """The task of ``stage``: its name, tags, placement and retries.

    It is retried only where that may help: on a retryable error, not under ``on_error="fail"``.
    Later stages go first, so that partitions are finished rather than begun.
    """
    if stage.on_error == "fail":
        retries = 0
    tags = [f"pipeline:{plan.pipeline}", f"stage:{stage.name}"]
    tags += [f"resource:{name.lower()}" for name in sorted(stage.resources.counters())]
    return PlacedTask(
        run_stage_call,
        counters=stage.resources.counters(),
        priority=stage.index,
        name=stage.name,
        task_run_name="{call.name}",
        tags=tags,
        retries=retries,
        retry_delay_seconds=retry_delays(retries, retry_delay_s),
        retry_condition_fn=worth_a_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )


def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether repeating may help: an operator says so, or Python does (timeouts, connections)."""
    error = state.data
    return isinstance(error, OperatorError) and error.retryable


def split_by_operator(plan: Plan) -> Plan:
    """``plan`` with one stage per operator: each then has a task run of its own in the UI.

    Rows are the same; they travel through the workers' memory between operators.
    """
    before: list[Plan] = []
    first = 0
    for chain in plan.before:
        before.append(dataclasses.replace(_split(chain), first_stage=first))
        first += len(before[-1].stages)
    return dataclasses.replace(_split(plan), before=tuple(before), first_stage=first)


def _split(plan: Plan) -> Plan:
    stages: list[Stage] = []
    origin: list[int] = []
    for stage in plan.stages:
        pieces: list[dict[str, Any]] = []
        if stage.source is not None:
            pieces.append({"steps": (), "source": stage.source})
        pieces += [{"steps": (step,), "source": None} for step in stage.steps]
        if stage.sink is not None:
            pieces.append({"steps": (), "source": None})
        for piece in pieces:
            stages.append(dataclasses.replace(stage, index=len(stages), sink=None, **piece))
            origin.append(stage.index)
        if stage.sink is not None:
            stages[-1] = dataclasses.replace(stages[-1], sink=stage.sink)
    partitions = tuple(
        dataclasses.replace(partition, keys=tuple(partition.keys[index] for index in origin))
        for partition in plan.partitions
    )
    return dataclasses.replace(plan, stages=tuple(stages), partitions=partitions)


def _this_worker() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return "threads"


def _retries_so_far() -> int:
    context = TaskRunContext.get()
    return max(0, context.task_run.run_count - 1) if context else 0
