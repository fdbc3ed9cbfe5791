"""The bookkeeping of a run, the same under every runner: what is finished, whether rows
add up, what is published.

A runner goes through :meth:`Run.chains`, runs each chain's ``todo`` in any order and by any means,
records what comes of it, and ends the chain.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from sage_prefect.common.errors import AccountingError, PipelineError
from sage_prefect.kernel.commit_log import CommitLog
from sage_prefect.kernel.exchange import ExchangeReader, ExchangeWriter
from sage_prefect.kernel.plan import Plan
from sage_prefect.kernel.report import RunReport, StageReport
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.kernel.stage import StageOutput

REUSE = ("always", "unfinished", "never")


class Run:
    """One run of ``plan``.

    Args:
        plan: what runs.
        log: where finished partitions are on record.
        reuse: ``"always"``: a run whose code, parameters and input are those of a published one is
            skipped whole, and finished partitions of an interrupted one are kept;
            ``"unfinished"``: only the latter; ``"never"``: all runs anew.

    Raises:
        PipelineError: ``reuse`` is unknown.
    """

    def __init__(self, plan: Plan, log: CommitLog, reuse: str) -> None:
        if reuse not in REUSE:
            raise PipelineError(f"reuse={reuse!r} is unknown.", hint=f"Known: {', '.join(REUSE)}.")
        self.plan = plan
        self._log, self._reuse = log, reuse
        self._started = time.perf_counter()
        self._ran: list[ChainRun] = []
        self._needed: tuple[Plan, ...] = plan.chains
        self._published = self._earlier_run() if reuse == "always" else None

    @property
    def skipped(self) -> bool:
        """Whether an earlier run published all of this."""
        return self._published is not None

    @property
    def progress(self) -> tuple[int, int]:
        """Partitions finished, and in all."""
        done = sum(len(chain.receipts) for chain in self._ran)
        return done, sum(len(plan.partitions) for plan in self._needed)

    def chains(self) -> Iterator[ChainRun]:
        """The chains that have to run, each when those before it have ended."""
        if self.skipped:
            return
        last = ChainRun(self.plan, self._log, self._reuse, {})
        staged: dict[str, int] = {}
        # Exchanges are read by partitions that are not finished: without any, none is needed.
        if not last.todo:
            self._needed = (self.plan,)
        for plan in self._needed[:-1]:
            chain = ChainRun(plan, self._log, self._reuse, staged)
            self._ran.append(chain)
            yield chain
            staged |= {receipt.location: receipt.rows for receipt in chain.receipts}
        last.staged = staged
        self._ran.append(last)
        yield last
        for chain in self._ran[:-1]:
            chain.clear()

    def report(self) -> RunReport:
        """The outcome, when all chains have ended."""
        if self._published is not None:
            return self._published
        last = self._ran[-1]
        if last.committed is None:
            raise PipelineError("the last chain has not ended. This is a bug.")
        plans = [chain.plan for chain in self._ran]
        return RunReport(
            self.plan.pipeline,
            self.plan.context.run_id,
            time.perf_counter() - self._started,
            [report for chain in self._ran for report in chain.reports],
            last.committed,
            sum(len(plan.partitions) for plan in plans),
            sum(chain.reused for chain in self._ran),
            tuple(plan.first_stage for plan in plans if not _exchanged(plan)),
        )

    def _earlier_run(self) -> RunReport | None:
        published = self._log.published(self.plan.key)
        if published is None or not sink_of(self.plan).current(published[0]):
            return None
        committed, reports = published
        kept = [dataclasses.replace(report, reused=True) for report in reports]
        count = len(self.plan.partitions)
        run_id = self.plan.context.run_id
        return RunReport(self.plan.pipeline, run_id, 0.0, kept, committed, count, count)


class ChainRun:
    """One chain of a run: its finished partitions, and what is to do."""

    def __init__(self, plan: Plan, log: CommitLog, reuse: str, staged: dict[str, int]) -> None:
        self.plan = plan
        self.staged = staged
        self.receipts: list[Receipt] = []
        self.reports: list[StageReport] = []
        self.committed: Committed | None = None
        self._log = log
        earlier = set() if reuse == "never" else self._take_finished()
        self.reused = len(earlier)
        self.todo = [part for part in plan.partitions if part.key not in earlier]

    def record(self, output: StageOutput) -> None:
        """A partition is through: put it on record."""
        if output.receipt is None:
            raise PipelineError("the last stage left no receipt. This is a bug.")
        self._log.finish(output.receipt, output.reports)
        self._add(output.receipt, output.reports)

    def end(self) -> None:
        """Check that rows add up, and publish.

        Raises:
            AccountingError: rows were lost or doubled between two chains.
            PipelineError: nothing reached the sink, or it published something else.
        """
        self._check_exchange()
        sink = sink_of(self.plan)
        ordered = sorted(self.receipts, key=lambda receipt: receipt.index)
        expected = sum(receipt.rows for receipt in ordered)
        if isinstance(sink, ExchangeWriter):
            self.committed = sink.commit(ordered)
            return
        self._check_something(sink, expected)
        self.committed = sink.commit(ordered)
        if self.committed.rows != expected:
            raise PipelineError(
                f"sink {sink.name!r} published {self.committed.rows} row(s) of {expected} staged.",
                hint="Nothing downstream should rely on it; run again.",
            )
        self._log.publish(self.plan.key, self.committed, self.reports)
        for receipt in ordered:
            self._log.forget(receipt.partition)

    def clear(self) -> None:
        """Forget an exchange that has been read."""
        sink = sink_of(self.plan)
        if isinstance(sink, ExchangeWriter):
            for receipt in self.receipts:
                self._log.forget(receipt.partition)
            sink.remove([receipt.partition for receipt in self.receipts])

    def _take_finished(self) -> set[str]:
        sink = sink_of(self.plan)
        found = set()
        for partition in self.plan.partitions:
            entry = self._log.finished(partition.key)
            if entry is None or not sink.holds(entry[0]):
                continue
            receipt, reports = entry
            self._add(
                dataclasses.replace(receipt, index=partition.index),
                [
                    dataclasses.replace(report, reused=True, partition=partition.index)
                    for report in reports
                ],
            )
            found.add(partition.key)
        return found

    def _add(self, receipt: Receipt, reports: list[StageReport]) -> None:
        self.receipts.append(receipt)
        # Stages are numbered within their chain where they run, and over the whole run here.
        first = self.plan.first_stage
        self.reports += [
            dataclasses.replace(report, stage=report.stage + first) for report in reports
        ]

    def _check_exchange(self) -> None:
        """Rows that the chains before have staged = rows that this one has read."""
        if not _exchanged(self.plan) or not self.staged:
            return
        files = {
            (number, path)
            for partition in self.plan.partitions
            for part in partition.parts
            for number, path, _ in part.spec
        }
        written = sum(self.staged[path] for _, path in files)
        read = sum(r.rows_in for r in self.reports if r.stage == self.plan.first_stage)
        if read != written:
            raise AccountingError(
                f"rows do not add up before stage {self.plan.first_stage} "
                f"({self.plan.stages[0].name!r}): {written} went into the exchange, {read} came "
                "out.",
                hint='This is a bug. Running again with reuse="never" stages them anew.',
            )

    def _check_something(self, sink: Sink, expected: int) -> None:
        letters = [letter for report in self.reports for letter in report.dead_letters]
        if not expected and letters:
            # The sink could only say that it got nothing; the reason is here.
            raise PipelineError(
                f"nothing reached sink {sink.name!r} of pipeline {self.plan.pipeline!r}: all of it "
                f"was set aside ({len(letters)} dead letter(s)). First: {letters[0].error}",
                hint="What was published before stays as it was.",
            )


def sink_of(plan: Plan) -> Sink:
    """The sink at the end of a chain."""
    sink = plan.stages[-1].sink
    if sink is None:
        raise PipelineError(f"the plan of {plan.pipeline!r} has no sink. This is a bug.")
    return sink


def with_run_id(plan: Plan, run_id: str) -> Plan:
    """``plan`` for the run ``run_id``."""
    context = dataclasses.replace(plan.context, run_id=run_id)
    before = tuple(dataclasses.replace(chain, context=context) for chain in plan.before)
    return dataclasses.replace(plan, context=context, before=before)


def _exchanged(plan: Plan) -> bool:
    return isinstance(plan.stages[0].source, ExchangeReader)
