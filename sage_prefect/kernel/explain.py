"""A plan in words and as a Mermaid diagram."""

from __future__ import annotations

from sage_prefect.kernel.exchange import ExchangeReader, ExchangeWriter
from sage_prefect.kernel.operator import Operator
from sage_prefect.kernel.plan import Plan, Stage


def text(plan: Plan) -> str:
    """Stages with their operators, columns, placement, and why each is a stage of its own;
    partitions; estimated cost."""
    stages = sum(len(chain.stages) for chain in plan.chains)
    cuts = " + ".join(f"{len(c.stages)} x {len(c.partitions)}" for c in plan.chains)
    cost = sum(chain.estimate_s for chain in plan.chains)
    if plan.before:
        lines = [
            f"pipeline {plan.pipeline!r}: {stages} stage(s) in {len(plan.chains)} chains, "
            f"stages x partitions: {cuts} = {plan.tasks} task(s), "
            f"about {cost:.1f} s of work (operators' own estimate)"
        ]
    else:
        lines = [
            f"pipeline {plan.pipeline!r}: {stages} stage(s) x {len(plan.partitions)} "
            f"partition(s) = {plan.tasks} task(s), "
            f"about {cost:.1f} s of work (operators' own estimate)"
        ]
    for chain in plan.chains:
        lines += _chain(chain)
    return "\n".join(lines)


def _chain(plan: Plan) -> list[str]:
    lines = []
    for at, stage in enumerate(plan.stages):
        number = plan.first_stage + stage.index
        lines.append(f"stage {number} {stage.name}  [placement: {stage.resources}]")
        reason = _why_not_fused(plan, at)
        if reason:
            lines.append(f"  begins here: {reason}")
        declared = {step.operator.name: step.declared_at for step in stage.steps}
        for operator in stage.operators:
            place = declared.get(operator.name)
            lines.append(
                f"  {_operator(operator)}{_columns(operator)}" + (f"  ({place})" if place else "")
            )
    if plan.first_stage and isinstance(plan.stages[0].source, ExchangeReader):
        return [*lines, f"{len(plan.partitions)} partition(s) after the exchange"]
    shown = plan.partitions[:3]
    lines += [f"partition {part.label}: {len(part.parts)} part(s)" for part in shown]
    if len(plan.partitions) > len(shown):
        lines.append(f"... and {len(plan.partitions) - len(shown)} more partition(s)")
    return lines


def _why_not_fused(plan: Plan, at: int) -> str:
    stage = plan.stages[at]
    if at:
        before = plan.stages[at - 1].resources
        return f"placement changes from [{before}] to [{stage.resources}]"
    if isinstance(stage.source, ExchangeReader):
        return "rows change partitions; all partitions before must have ended"
    return ""


def _operator(operator: Operator) -> str:
    if isinstance(operator, ExchangeWriter):
        return f"exchange: {operator.route}, into {operator.sections} section(s)"
    if isinstance(operator, ExchangeReader):
        return "read-exchange"
    return repr(operator)


def mermaid(plan: Plan) -> str:
    """The plan as a Mermaid flowchart: one box per stage, one node per operator."""
    lines = ["flowchart LR"]
    links: list[str] = []
    written: dict[str, str] = {}
    count = 0
    for chain in plan.chains:
        nodes: list[str] = []
        for stage in chain.stages:
            number = chain.first_stage + stage.index
            lines.append(f'  subgraph s{number}["stage {number}: {_placement(stage)}"]')
            for operator in stage.operators:
                node = f"n{count}"
                count += 1
                lines.append(f'    {node}["{operator.name}"]')
                nodes.append(node)
            lines.append("  end")
        if len(nodes) > 1:
            links.append(f"  {' --> '.join(nodes)}")
        fed = {
            written[path]: None
            for part in chain.partitions[0].parts
            if isinstance(chain.stages[0].source, ExchangeReader)
            for _, path, _ in part.spec
        }
        links += [f"  {node} --> {nodes[0]}" for node in fed]
        sink = chain.stages[-1].sink
        if isinstance(sink, ExchangeWriter):
            written |= {str(sink.file(part.key)): nodes[-1] for part in chain.partitions}
    return "\n".join([*lines, *links])


def _placement(stage: Stage) -> str:
    return str(stage.resources).replace('"', "'")


def _columns(operator: Operator) -> str:
    reads = f" reads {', '.join(operator.reads)}" if operator.reads else ""
    adds = f" adds {', '.join(operator.adds)}" if operator.adds else ""
    return f" :{reads}{';' if reads and adds else ''}{adds}" if reads or adds else ""
