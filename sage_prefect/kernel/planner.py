"""From a checked graph to a plan: fuse operators into stages, cut the source into partitions.

Partitions depend on the pipeline and its input only, never on the cluster, so that a run that is
repeated elsewhere finds the partitions that are finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sage_prefect.common.errors import EmptySourceError, GraphError
from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.operator import Operator, OperatorContext
from sage_prefect.kernel.plan import OnError, Partition, Plan, Stage, Step
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.sink import Sink
from sage_prefect.kernel.source import Source, SourcePart

# One task costs about 10 to 20 ms of orchestration (research: Prefect task run + Dask task); at 2 s
# of work per partition that is under 1 %. More partitions than this only burden the UI.
TARGET_PARTITION_S = 2.0
MAX_PARTITIONS = 500
# With fewer partitions than this, a cluster of a few workers would idle at the tail.
MIN_PARTITIONS = 4


def fuse(source: Source, steps: Sequence[Step], sink: Sink, on_error: OnError) -> list[Stage]:
    """Adjacent operators with the same placement become one stage.

    An operator without a wish runs wherever its neighbour does; two different wishes meet at a
    stage edge, where the partition may change workers.
    """
    groups: list[tuple[Resources, list[Step]]] = [(Resources(), [])]
    for step in steps:
        wish, members = groups[-1]
        if not step.resources or not wish or step.resources == wish:
            groups[-1] = (wish or step.resources, [*members, step])
        else:
            groups.append((step.resources, [step]))
    if sink.resources and groups[-1][0] and sink.resources != groups[-1][0]:
        groups.append((sink.resources, []))
    elif sink.resources:
        groups[-1] = (sink.resources, groups[-1][1])
    if source.resources and groups[0][0] and source.resources != groups[0][0]:
        groups.insert(0, (source.resources, []))
    elif source.resources:
        groups[0] = (source.resources, groups[0][1])
    last = len(groups) - 1
    return [
        Stage(
            index,
            tuple(members),
            wish,
            source=source if index == 0 else None,
            source_on_error=on_error,
            sink=sink if index == last else None,
        )
        for index, (wish, members) in enumerate(groups)
    ]


def plan(
    name: str,
    source: Source,
    source_on_error: OnError,
    steps: Sequence[Step],
    sink: Sink,
    columns: tuple[tuple[str, ...] | None, ...],
    context: OperatorContext,
    partitions: int | None = None,
) -> Plan:
    """Build the plan.

    Args:
        partitions: how many to cut; ``None``: so that one takes about ``TARGET_PARTITION_S``.

    Raises:
        EmptySourceError: the source has no parts.
        GraphError: ``partitions`` is not positive.
    """
    if partitions is not None and partitions < 1:
        raise GraphError(f"partitions={partitions} is not positive.", hint="Use 1 or more.")
    parts = list(source.parts())
    if not parts:
        raise EmptySourceError(
            f"source {source!r} of pipeline {name!r} has nothing to read.",
            hint="Check its path or arguments.",
        )
    stages = fuse(source, steps, sink, source_on_error)
    cost = estimate_s(parts, source, [step.operator for step in steps])
    if partitions is None:
        wanted = max(math.ceil(cost / TARGET_PARTITION_S), MIN_PARTITIONS)
        partitions = min(wanted, MAX_PARTITIONS)
    groups = cut(parts, min(partitions, len(parts)))
    codes = _code_keys(stages)
    made = tuple(
        Partition(
            index,
            len(groups),
            tuple(group),
            tuple(fingerprint([code, [part.key for part in group]]) for code in codes),
        )
        for index, group in enumerate(groups)
    )
    keys = [partition.key for partition in made]
    if len(set(keys)) != len(keys):
        # Two partitions of the same content would overwrite each other: tell them apart.
        made = tuple(
            Partition(p.index, p.count, p.parts, tuple(fingerprint([k, p.index]) for k in p.keys))
            for p in made
        )
    return Plan(name, tuple(stages), made, context, cost, columns)


def cut(parts: Sequence[SourcePart], count: int) -> list[list[SourcePart]]:
    """Cut ``parts`` into ``count`` runs of about equal weight, keeping their order."""
    total = sum(max(part.weight, 0.0) for part in parts) or float(len(parts))
    groups: list[list[SourcePart]] = [[]]
    filled = 0.0
    for position, part in enumerate(parts):
        left_parts = len(parts) - position
        left_groups = count - len(groups)
        middle = filled + max(part.weight, 0.0) / 2
        full = middle >= total * len(groups) / count
        if groups[-1] and left_groups and (full or left_parts <= left_groups):
            groups.append([])
        groups[-1].append(part)
        filled += max(part.weight, 0.0)
    return groups


def estimate_s(parts: Sequence[SourcePart], source: Source, operators: Sequence[Operator]) -> float:
    """Rough task seconds of the whole run, from the operators' declared costs per row."""
    weight = sum(part.weight for part in parts)
    rows = sum(part.rows if part.rows is not None else 1 for part in parts)
    return weight * source.weight_cost_s + rows * sum(op.row_cost_s for op in operators)


def _code_keys(stages: Sequence[Stage]) -> list[str]:
    """One key per stage: of all code up to and with it."""
    keys: list[str] = []
    so_far: list[str] = []
    for stage in stages:
        so_far += [op.content_key() for op in stage.operators]
        keys.append(fingerprint(so_far))
    return keys
