"""One operator as a Prefect task, for hand-written flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
from prefect.cache_policies import NO_CACHE

from sage_prefect.common.errors import GraphError, MissingColumnError
from sage_prefect.common.settings import load_settings
from sage_prefect.kernel.operator import Operator, OperatorContext, rows_to_batch
from sage_prefect.kernel.plan import Partition, Stage, Step
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.retries import retry_delays
from sage_prefect.kernel.sink import Sink
from sage_prefect.kernel.source import Source, SourcePart
from sage_prefect.kernel.stage import StageOutput, run_stage
from sage_prefect.orchestration.placed_task import PlacedTask
from sage_prefect.orchestration.stage_task import worth_a_retry

Rows: TypeAlias = Any  # Sequence[Mapping[str, Any]] | pa.RecordBatch | pa.Table


def operator_task(
    operator: Operator, *, resources: Resources | None = None, **options: Any
) -> PlacedTask:
    """``operator`` as a task that takes rows and returns rows of the same kind: a list of dicts, a
    ``pyarrow.RecordBatch`` or a ``pyarrow.Table``.

    On a Dask worker the operator is set up once and kept, as in a pipeline.

    Args:
        resources: placement on Dask workers; None: the operator's own wish.
        options: those of ``prefect.task``. With ``retries=`` only errors that may pass are
            retried, with doubling delay, unless ``retry_condition_fn`` or
            ``retry_delay_seconds`` say otherwise.

    Raises:
        GraphError: sources and sinks are no tasks.
    """
    if isinstance(operator, (Source, Sink)):
        kind = "source" if isinstance(operator, Source) else "sink"
        raise GraphError(
            f"{operator!r} is a {kind}, which works on no rows of its own.",
            hint="Use it in a Pipeline; its to_flow() can be called inside any flow.",
        )
    wish = resources if resources is not None else operator.resources
    retries = int(options.get("retries") or 0)
    options.setdefault("name", operator.name)
    options.setdefault("retry_condition_fn", worth_a_retry)
    options.setdefault("cache_policy", NO_CACHE)
    if retries:
        first = load_settings().pipelines.retry_delay_s
        options.setdefault("retry_delay_seconds", retry_delays(retries, first))
    tags = {f"operator:{operator.name}", *(f"resource:{name.lower()}" for name in wish.counters())}
    options["tags"] = sorted(tags | set(options.get("tags") or ()))

    def run(rows: Any) -> Any:
        return apply_operator(operator, rows)

    run.__name__ = run.__qualname__ = operator.name.replace("-", "_")
    run.__doc__ = f"Operator {operator!r} on rows."
    return PlacedTask(run, counters=wish.counters(), **options)


def apply_operator(operator: Operator, rows: Rows) -> Rows:
    """Run ``operator`` over ``rows`` in this process.

    Raises:
        MissingColumnError: a column that the operator reads is not there.
        OperatorError: it failed; names the row where that is known.
        GraphError: ``rows`` is of none of the kinds.
    """
    batches, schema = _batches(operator, rows)
    if not batches:
        return rows
    for column in operator.reads:
        if column not in schema:
            raise MissingColumnError(operator.name, column, schema)
    count = sum(batch.num_rows for batch in batches)
    stage = Stage(1, (Step(operator),), Resources())
    part = SourcePart("task", None, f"{count} row(s)", rows=count)
    partition = Partition(0, 1, (part,), ("task",))
    upstream = StageOutput(batches, rows=count)
    output = run_stage(stage, partition, OperatorContext(), upstream)
    if isinstance(rows, pa.RecordBatch):
        table = pa.Table.from_batches(output.batches).combine_chunks() if output.batches else None
        return table.to_batches()[0] if table is not None else rows.slice(0, 0)
    if isinstance(rows, pa.Table):
        return pa.Table.from_batches(output.batches) if output.batches else rows.slice(0, 0)
    return [row for batch in output.batches for row in batch.to_pylist()]


def _batches(operator: Operator, rows: Rows) -> tuple[list[pa.RecordBatch], list[str]]:
    if isinstance(rows, pa.RecordBatch):
        return [rows] if rows.num_rows else [], rows.schema.names
    if isinstance(rows, pa.Table):
        return [batch for batch in rows.to_batches() if batch.num_rows], rows.schema.names
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        batch = rows_to_batch(list(rows))
        return [batch] if rows else [], batch.schema.names
    raise GraphError(
        f"operator {operator.name!r} got {type(rows).__name__}, not rows.",
        hint="Give a list of dicts, a pyarrow.RecordBatch or a pyarrow.Table.",
    )
