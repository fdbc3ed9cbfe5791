"""From a checked graph to a plan: fuse operators into stages, cut the source into partitions.

Partitions depend on the pipeline and its input only, never on the cluster, so that a run that is
repeated elsewhere finds the partitions that are finished.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sage_prefect.common.errors import EmptySourceError, GraphError
from sage_prefect.kernel.exchange import MAX_SECTIONS, ExchangeWriter
from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.graph import Chain
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
    chain: Chain,
    sink: Sink,
    context: OperatorContext,
    partitions: int | None = None,
    columns: tuple[tuple[str, ...] | None, ...] = (),
    folder: str = "",
) -> Plan:
    """Build the plan of ``chain`` and of all that feed it.

    Args:
        partitions: how many to cut each source into; None: so that one takes about
            ``TARGET_PARTITION_S``.
        folder: where exchanges stage their rows.

    Raises:
        EmptySourceError: a source has no parts.
        GraphError: ``partitions`` is not positive.
    """
    if partitions is not None and partitions < 1:
        raise GraphError(f"partitions={partitions} is not positive.", hint="Use 1 or more.")
    planner = _Planner(name, context, partitions, folder)
    last = planner.chain(chain, sink)
    return dataclasses.replace(
        last,
        columns=columns,
        before=tuple(planner.made[:-1]),
        first_stage=sum(len(made.stages) for made in planner.made[:-1]),
    )


class _Planner:
    """Plans chains, those first that feed others. What two chains would do alike is done once."""

    def __init__(
        self, name: str, context: OperatorContext, partitions: int | None, folder: str
    ) -> None:
        self.made: list[Plan] = []
        self._name, self._context = name, context
        self._partitions, self._folder = partitions, folder
        self._cuts: dict[int, tuple[list[list[SourcePart]], float]] = {}

    def chain(self, chain: Chain, sink: Sink) -> Plan:
        """The plan of ``chain`` into ``sink``, after those of its feeds."""
        stages = fuse(chain.source, chain.steps, sink, chain.source_on_error)
        if chain.feeds:
            groups, cost = self._exchanged(chain), 0.0
        else:
            groups, cost = self._cut(chain)
        codes = _code_keys(stages)
        made = _distinct(
            tuple(
                Partition(
                    index,
                    len(groups),
                    tuple(group),
                    tuple(fingerprint([code, [part.key for part in group]]) for code in codes),
                )
                for index, group in enumerate(groups)
            )
        )
        first = sum(len(before.stages) for before in self.made)
        planned = Plan(self._name, tuple(stages), made, self._context, cost, first_stage=first)
        for known in self.made:
            if known.key == planned.key and isinstance(sink, ExchangeWriter):
                return known
        self.made.append(planned)
        return planned

    def _cut(self, chain: Chain) -> tuple[list[list[SourcePart]], float]:
        if id(chain) not in self._cuts:
            source = chain.source
            parts = list(source.parts())
            if not parts:
                raise EmptySourceError(
                    f"source {source!r} of pipeline {self._name!r} has nothing to read.",
                    hint="Check its path or arguments.",
                )
            cost = estimate_s(parts, source, [step.operator for step in chain.steps])
            wanted = self._partitions
            if wanted is None:
                wanted = min(
                    max(math.ceil(cost / TARGET_PARTITION_S), MIN_PARTITIONS), MAX_PARTITIONS
                )
            self._cuts[id(chain)] = cut(parts, min(wanted, len(parts))), cost
        return self._cuts[id(chain)]

    def _count(self, chain: Chain) -> int:
        """How many partitions ``chain`` has."""
        if not chain.feeds:
            return len(self._cut(chain)[0])
        routes = [feed.route for feed in chain.feeds]
        if routes[0].kind == "forward":
            return sum(
                self._count(feed.chain) for feed in chain.feeds if feed.route.kind == "forward"
            )
        if any(route.kind == "single" for route in routes):
            return 1
        asked = [route.partitions for route in routes if route.partitions is not None]
        if asked:
            return max(asked)
        return min(max(self._count(feed.chain) for feed in chain.feeds), MAX_SECTIONS)

    def _exchanged(self, chain: Chain) -> list[list[SourcePart]]:
        count = self._count(chain)
        specs: list[list[tuple[int, str, int]]] = [[] for _ in range(count)]
        keys: list[list[object]] = [[] for _ in range(count)]
        forwarded = 0
        for number, feed in enumerate(chain.feeds):
            sections = count if feed.route.kind in ("hash", "round_robin") else 1
            writer = ExchangeWriter(feed.route, sections, self._folder)
            fed = self.chain(feed.chain, writer)
            for partition in fed.partitions:
                path = str(writer.file(partition.key))
                if feed.route.kind == "forward":
                    targets = {forwarded: 0}
                    forwarded += 1
                else:
                    targets = {at: at if sections > 1 else 0 for at in range(count)}
                for target, section in targets.items():
                    specs[target].append((number, path, section))
                    keys[target].append([number, partition.key, section])
        return [
            [
                SourcePart(
                    fingerprint(["exchange", index, keys[index]]), tuple(spec), f"part {index + 1}"
                )
            ]
            for index, spec in enumerate(specs)
        ]


def _distinct(partitions: tuple[Partition, ...]) -> tuple[Partition, ...]:
    """Two partitions of the same content would overwrite each other: tell them apart."""
    keys = [partition.key for partition in partitions]
    if len(set(keys)) == len(keys):
        return partitions
    return tuple(
        Partition(p.index, p.count, p.parts, tuple(fingerprint([k, p.index]) for k in p.keys))
        for p in partitions
    )


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
