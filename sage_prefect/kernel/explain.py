"""A plan in words and as a Mermaid diagram."""

from __future__ import annotations

from sage_prefect.kernel.operator import Operator
from sage_prefect.kernel.plan import Plan, Stage


def text(plan: Plan) -> str:
    """Stages with their operators, columns, placement; partitions; estimated cost."""
    lines = [
        f"pipeline {plan.pipeline!r}: {len(plan.stages)} stage(s) x {len(plan.partitions)} "
        f"partition(s) = {len(plan.stages) * len(plan.partitions)} task(s), "
        f"about {plan.estimate_s:.1f} s of work (operators' own estimate)"
    ]
    for stage in plan.stages:
        lines.append(f"stage {stage.index} {stage.name}  [placement: {stage.resources}]")
        for operator in stage.operators:
            lines.append(f"  {operator!r}{_columns(operator)}")
    shown = plan.partitions[:3]
    for partition in shown:
        lines.append(f"partition {partition.label}: {len(partition.parts)} part(s)")
    if len(plan.partitions) > len(shown):
        lines.append(f"... and {len(plan.partitions) - len(shown)} more partition(s)")
    return "\n".join(lines)


def mermaid(plan: Plan) -> str:
    """The plan as a Mermaid flowchart: one box per stage, one node per operator."""
    lines = ["flowchart LR"]
    nodes: list[str] = []
    for stage in plan.stages:
        lines.append(f'  subgraph s{stage.index}["stage {stage.index}: {_placement(stage)}"]')
        for operator in stage.operators:
            node = f"n{len(nodes)}"
            lines.append(f'    {node}["{operator.name}"]')
            nodes.append(node)
        lines.append("  end")
    if len(nodes) > 1:
        lines.append(f"  {' --> '.join(nodes)}")
    return "\n".join(lines)


def _placement(stage: Stage) -> str:
    return str(stage.resources).replace('"', "'")


def _columns(operator: Operator) -> str:
    reads = f" reads {', '.join(operator.reads)}" if operator.reads else ""
    adds = f" adds {', '.join(operator.adds)}" if operator.adds else ""
    return f" :{reads}{';' if reads and adds else ''}{adds}" if reads or adds else ""
