"""Run one stage of one partition: rows stream through its operators in micro-batches.

Every runner calls :func:`run_stage`, in this process or on a worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import pyarrow as pa

from sage_prefect.common.errors import AccountingError, OperatorError, SageError, is_retryable
from sage_prefect.kernel.operator import (
    Operator,
    OperatorContext,
    PartitionOperator,
    RowFailure,
)
from sage_prefect.kernel.operator_pool import OperatorPool, pool
from sage_prefect.kernel.plan import OnError, Partition, Stage
from sage_prefect.kernel.report import DeadLetter, OperatorReport, StageReport
from sage_prefect.kernel.sink import Receipt
from sage_prefect.kernel.source import SourcePart

# Rows per batch where no operator asks for a size and the upstream batch is larger.
MAX_BATCH_ROWS = 8192


@dataclass
class StageOutput:
    """What a stage leaves: the rows for the next one, or the sink's receipt.

    Args:
        batches: rows for the next stage; empty after the last.
        reports: of this stage and all before it, so that the flow need fetch the last one only.
        rows: rows in ``batches``; the next stage checks that it reads as many.
        receipt: of the sink, after the last stage.
    """

    batches: list[pa.RecordBatch]
    reports: list[StageReport] = field(default_factory=list)
    rows: int = 0
    receipt: Receipt | None = None


def run_stage(
    stage: Stage,
    partition: Partition,
    context: OperatorContext,
    upstream: StageOutput | None = None,
    *,
    worker: str = "",
    operators: OperatorPool = pool,
) -> StageOutput:
    """Run ``stage`` over ``partition``.

    Args:
        upstream: the output of the stage before; None for the first.
        worker: name for the report.

    Raises:
        OperatorError: an operator failed; names operator, partition and row.
        AccountingError: rows were lost or doubled.
    """
    started = time.perf_counter()
    report = StageReport(stage.index, stage.name, partition.index, [], worker=worker)
    with ExitStack() as stack:
        flow = _Flow(stage, partition, report)
        if stage.source is not None:
            source = flow.set_up(stack, stage.source, context, operators)
            rows = flow.read(source, partition.parts, stage.source_on_error)
        elif upstream is not None:
            rows = iter(upstream.batches)
        else:
            raise AccountingError(
                f"stage {stage.name!r} has neither source nor upstream. This is a bug."
            )
        for step in stage.steps:
            instance = flow.set_up(stack, step.operator, context, operators)
            rows = flow.apply(instance, step.on_error, rows)
        receipt = None
        kept: list[pa.RecordBatch] = []
        if stage.sink is not None:
            sink = flow.set_up(stack, stage.sink, context, operators)
            receipt = flow.write(sink, partition, rows)
        else:
            kept = [batch for batch in rows if batch.num_rows]
    report.seconds = time.perf_counter() - started
    _check(stage, partition, report, upstream)
    return StageOutput(
        kept,
        [*(upstream.reports if upstream else []), report],
        sum(batch.num_rows for batch in kept),
        receipt,
    )


class _Flow:
    """The generators that rows pass through, and their counts."""

    def __init__(self, stage: Stage, partition: Partition, report: StageReport) -> None:
        self.declared = {step.operator.name: step.declared_at for step in stage.steps}
        self.partition = partition
        self.report = report

    def set_up(
        self, stack: ExitStack, operator: Operator, context: OperatorContext, pool: OperatorPool
    ) -> Operator:
        try:
            return stack.enter_context(pool.lend(operator, context))
        except Exception as error:
            raise self.failure(operator, error, what="set-up: ") from error

    def read(
        self, source: Operator, parts: tuple[SourcePart, ...], on_error: OnError
    ) -> Iterator[pa.RecordBatch]:
        counts = self._counts(source)

        def set_aside(part: SourcePart, error: Exception) -> None:
            if self.curable(source, error):
                raise error
            counts.dead += 1
            self.report.dead_letters.append(
                DeadLetter(source.name, self.partition.label, _cause(error), part=part.label)
            )

        handler = set_aside if on_error == "dead_letter" else None
        return self._read(source, source.read_all(parts, handler), counts)  # type: ignore[attr-defined]

    def _read(
        self, source: Operator, batches: Iterator[pa.RecordBatch], counts: OperatorReport
    ) -> Iterator[pa.RecordBatch]:
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches, None)
            except Exception as error:
                raise self.failure(source, error) from error
            counts.seconds += time.perf_counter() - begun
            if batch is None:
                return
            counts.rows_in += batch.num_rows
            counts.rows_out += batch.num_rows
            yield batch

    def apply(
        self, operator: Operator, on_error: OnError, rows: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        # The counts are made here, not in the generator, which starts only when it is pulled: the
        # report lists operators in the order of the data.
        return self._apply(operator, on_error, rows, self._counts(operator))

    def _apply(
        self,
        operator: Operator,
        on_error: OnError,
        rows: Iterator[pa.RecordBatch],
        counts: OperatorReport,
    ) -> Iterator[pa.RecordBatch]:
        if isinstance(operator, PartitionOperator):
            yield from self._whole(operator, rows, counts)
            return
        for batch in rebatch(rows, operator.batch_size):
            offset = counts.rows_in
            counts.rows_in += batch.num_rows
            for produced in self._process(operator, on_error, batch, offset, counts):
                counts.rows_out += produced.num_rows
                if produced.num_rows:
                    yield produced

    def _whole(
        self,
        operator: PartitionOperator,
        rows: Iterator[pa.RecordBatch],
        counts: OperatorReport,
    ) -> Iterator[pa.RecordBatch]:
        waited = 0.0

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal waited
            while True:
                begun = time.perf_counter()
                batch = next(rows, None)
                waited += time.perf_counter() - begun
                if batch is None:
                    return
                counts.rows_in += batch.num_rows
                yield batch

        def set_aside(batch: pa.RecordBatch, reason: str) -> None:
            counts.dead += batch.num_rows
            self.report.dead_letters += [
                DeadLetter(operator.name, self.partition.label, reason, row=row)
                for row in batch.to_pylist()
            ]

        produced = operator.process_partition(counted(), set_aside)
        while True:
            begun = time.perf_counter()
            waited = 0.0
            try:
                batch = next(produced, None)
            except (OperatorError, AccountingError):
                raise  # from upstream: this operator only pulled
            except Exception as error:
                raise self.failure(operator, error) from error
            # It pulls the chain before it: its own time is what that did not take.
            counts.seconds += max(0.0, time.perf_counter() - begun - waited)
            if batch is None:
                return
            counts.rows_out += batch.num_rows
            if batch.num_rows:
                yield batch

    def _process(
        self,
        operator: Operator,
        on_error: OnError,
        batch: pa.RecordBatch,
        offset: int,
        counts: OperatorReport,
    ) -> list[pa.RecordBatch]:
        begun = time.perf_counter()
        try:
            result = operator.process(batch)
            produced = [result] if isinstance(result, pa.RecordBatch) else list(result)
        except Exception as error:
            if on_error != "dead_letter" or self.curable(operator, error):
                row = offset + error.row if isinstance(error, RowFailure) else None
                raise self.failure(operator, error, row=row) from error
            failed = error
        else:
            self._check_rows(operator, batch, produced)
            return produced
        finally:
            counts.seconds += time.perf_counter() - begun
        if batch.num_rows == 1:
            counts.dead += 1
            letter = DeadLetter(
                operator.name, self.partition.label, _cause(failed), row=batch.to_pylist()[0]
            )
            self.report.dead_letters.append(letter)
            return []
        # Narrow it down: to the row that is known to fail, else by halves.
        middle = failed.row if isinstance(failed, RowFailure) else batch.num_rows // 2
        cuts = [0, middle, batch.num_rows]
        if isinstance(failed, RowFailure):
            cuts = [0, middle, middle + 1, batch.num_rows]
        kept: list[pa.RecordBatch] = []
        for start, stop in pairwise(cuts):
            if stop > start:
                piece = batch.slice(start, stop - start)
                kept += self._process(operator, on_error, piece, offset + start, counts)
        return kept

    def write(
        self, sink: Operator, partition: Partition, rows: Iterator[pa.RecordBatch]
    ) -> Receipt:
        counts = self._counts(sink)

        def counted() -> Iterator[pa.RecordBatch]:
            for batch in rows:
                counts.rows_in += batch.num_rows
                yield batch

        begun = time.perf_counter()
        before = sum(op.seconds for op in self.report.operators)
        try:
            receipt: Receipt = sink.write(  # type: ignore[attr-defined]
                partition.key, partition.index, counted()
            )
        except (OperatorError, AccountingError):
            raise  # from upstream: the sink only pulled
        except Exception as error:
            raise self.failure(sink, error) from error
        # The sink pulls the whole chain: its own time is what the others did not take.
        upstream = sum(op.seconds for op in self.report.operators) - before
        counts.seconds = max(0.0, time.perf_counter() - begun - upstream)
        counts.rows_out = receipt.rows
        return receipt

    def curable(self, operator: Operator, error: BaseException) -> bool:
        cause = error.error if isinstance(error, RowFailure) else error
        return is_retryable(cause) or isinstance(cause, operator.retry_on)

    def failure(
        self, operator: Operator, error: Exception, *, what: str = "", row: int | None = None
    ) -> OperatorError:
        if isinstance(error, OperatorError):
            return error
        cause = error.error if isinstance(error, RowFailure) else error
        hint = cause.hint if isinstance(cause, SageError) else None
        if self.declared.get(operator.name):
            hint = f"{hint or ''} Declared at {self.declared[operator.name]}.".lstrip()
        return OperatorError(
            operator.name,
            what + _cause(cause),
            partition=self.partition.label,
            row=row,
            retryable=self.curable(operator, error),
            hint=hint,
        )

    def _check_rows(
        self, operator: Operator, batch: pa.RecordBatch, produced: list[pa.RecordBatch]
    ) -> None:
        rows = sum(item.num_rows for item in produced)
        wrong = (operator.cardinality == "one" and rows != batch.num_rows) or (
            operator.cardinality == "fewer" and rows > batch.num_rows
        )
        if wrong:
            raise AccountingError(
                f"operator {operator.name!r} got {batch.num_rows} row(s) and gave {rows} in "
                f"partition {self.partition.label}.",
                hint='Declare cardinality="many" if it may expand rows, "fewer" if it may filter.',
            )

    def _counts(self, operator: Operator) -> OperatorReport:
        counts = OperatorReport(operator.name)
        self.report.operators.append(counts)
        return counts


def rebatch(rows: Iterator[pa.RecordBatch], size: int | None) -> Iterator[pa.RecordBatch]:
    """Batches of exactly ``size`` rows (the last may be smaller); order is kept.

    With ``size=None`` batches pass as they come, cut at ``MAX_BATCH_ROWS``. Batches whose schemas
    differ are not joined.
    """
    if size is None:
        for batch in rows:
            for start in range(0, batch.num_rows, MAX_BATCH_ROWS):
                yield batch.slice(start, MAX_BATCH_ROWS)
        return
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in rows:
        if held and batch.schema != held[0].schema:
            yield from _joined(held, size, whole=True)
            held, count = [], 0
        held.append(batch)
        count += batch.num_rows
        if count >= size:
            *full, rest = _joined(held, size, whole=False)
            yield from full
            held, count = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
    if count:
        yield from _joined(held, size, whole=True)


def _joined(held: list[pa.RecordBatch], size: int, *, whole: bool) -> list[pa.RecordBatch]:
    """``held`` as batches of ``size``; unless ``whole``, the last is the (maybe empty) rest."""
    joined = held[0] if len(held) == 1 else _one_batch(held)
    cut = [joined.slice(start, size) for start in range(0, joined.num_rows, size)]
    if whole:
        return cut
    return cut if cut and cut[-1].num_rows < size else [*cut, joined.slice(joined.num_rows)]


def _one_batch(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    combined = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return combined[0] if combined else batches[0].slice(0, 0)


def _check(
    stage: Stage, partition: Partition, report: StageReport, upstream: StageOutput | None
) -> None:
    """Rows read = rows processed + dead letters, at every edge inside the stage."""
    edges = list(pairwise(report.operators))
    problems = [
        f"{first.operator} gave {first.rows_out}, {second.operator} read {second.rows_in}"
        for first, second in edges
        if first.rows_out != second.rows_in
    ]
    if upstream is not None and report.operators and report.operators[0].rows_in != upstream.rows:
        problems.append(
            f"the stage before gave {upstream.rows}, {report.operators[0].operator} read "
            f"{report.operators[0].rows_in}"
        )
    for counts, operator in zip(report.operators, stage.operators, strict=True):
        if operator.cardinality == "one" and stage.source is not operator:
            lost = counts.rows_in - counts.rows_out - counts.dead
            if lost:
                problems.append(f"{counts.operator} lost {lost} of {counts.rows_in} row(s)")
    if problems:
        raise AccountingError(
            f"rows do not add up in stage {stage.name!r}, partition {partition.label}: "
            + "; ".join(problems)
            + "."
        )


def _cause(error: BaseException) -> str:
    cause = error.error if isinstance(error, RowFailure) else error
    text = cause.message if isinstance(cause, SageError) else str(cause)
    return text if isinstance(cause, SageError) else f"{type(cause).__name__}: {text}"
