"""What a run shows in the Prefect UI beside its task runs: progress, plan, figures."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.logging import get_run_logger

from sage_prefect.kernel.explain import text
from sage_prefect.kernel.plan import Plan
from sage_prefect.kernel.plan_drawing import image
from sage_prefect.kernel.report import RunReport

# An update costs about 17 ms of HTTP (research: prefect.md A3).
_PERIOD_S = 1.0
# More rows than this nobody reads in the UI; the run's report has them all.
_DEAD_LETTERS_SHOWN = 50


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    joined = "-".join(parts).lower()
    return re.sub(r"[^a-z0-9]+", "-", joined).strip("-") or "sage"


class Progress:
    """One progress artifact per stage, updated at most once per second.

    Args:
        plan: what runs.
        done: partitions that need not run (reused), which count as done in every stage.
    """

    def __init__(self, plan: Plan, done: int = 0) -> None:
        self._plan = plan
        self._done = [done for _ in plan.stages]
        self._shown: list[int] = [-1 for _ in plan.stages]
        self._ids: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, stage: int) -> None:
        """One more partition has gone through ``stage``."""
        self._done[stage] += 1

    async def __aenter__(self) -> Progress:
        first = self._plan.first_stage
        for stage in self._plan.stages:
            made = await acreate_progress_artifact(
                progress=0.0,
                key=artifact_key(self._plan.pipeline, "stage", str(first + stage.index)),
                description=f"Stage {first + stage.index}: {stage.name}",
            )
            self._ids.append(made)
        self._task = asyncio.create_task(self._keep_updating())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if not isinstance(exc[1], asyncio.CancelledError):
            await self._update()

    async def _keep_updating(self) -> None:
        while True:
            await self._update()
            await asyncio.sleep(_PERIOD_S)

    async def _update(self) -> None:
        total = len(self._plan.partitions)
        for stage, identity in enumerate(self._ids):
            if self._done[stage] == self._shown[stage]:
                continue
            self._shown[stage] = self._done[stage]
            try:
                await aupdate_progress_artifact(identity, 100.0 * self._done[stage] / total)
            except Exception as error:  # noqa: BLE001 - a bar that stands still must not end the run
                get_run_logger().warning("progress of stage %d not shown: %s", stage, error)


async def show_plan(plan: Plan) -> None:
    """The plan as a diagram and in words."""
    await acreate_markdown_artifact(
        key=artifact_key(plan.pipeline, "plan"),
        markdown=f"{image(plan)}\n\n```\n{text(plan)}\n```\n",
        description=f"Plan of pipeline {plan.pipeline}",
    )


async def show_report(report: RunReport) -> None:
    """Tables: figures per stage and operator, and what was set aside."""
    await acreate_table_artifact(
        key=artifact_key(report.pipeline, "stages"),
        table=report_table(report),
        description=(
            f"{report.committed.rows} row(s) published to {report.committed.location or 'memory'} "
            f"in {report.seconds:.1f} s; {report.reused_partitions} of {report.partitions} "
            "partition(s) reused"
        ),
    )
    letters = report.dead_letters
    if letters:
        await acreate_table_artifact(
            key=artifact_key(report.pipeline, "dead-letters"),
            table=[
                {
                    "operator": letter.operator,
                    "partition": letter.partition,
                    "row or part": str(letter.part if letter.part is not None else letter.row)[
                        :200
                    ],
                    "error": letter.error[:500],
                }
                for letter in letters[:_DEAD_LETTERS_SHOWN]
            ],
            description=f"{len(letters)} dead letter(s), the first {_DEAD_LETTERS_SHOWN} shown",
        )


def report_table(report: RunReport) -> list[dict[str, Any]]:
    """One row per stage, followed by one per operator of it."""
    rows: list[dict[str, Any]] = []
    for stage in report.summary():
        rows.append(
            {
                "stage": stage.stage,
                "name": stage.name,
                "partitions": stage.partitions,
                "reused": stage.reused,
                "rows in": stage.rows_in,
                "rows out": stage.rows_out,
                "rows/s": _rate(stage.rows_in, sum(stage.seconds)),
                "p50 s": round(stage.quantile(0.5), 3),
                "p95 s": round(stage.quantile(0.95), 3),
                "retries": stage.retries,
                "dead": stage.dead,
            }
        )
        for operator in stage.operators.values():
            rows.append(
                {
                    "stage": "",
                    "name": f"- {operator.operator}",
                    "partitions": "",
                    "reused": "",
                    "rows in": operator.rows_in,
                    "rows out": operator.rows_out,
                    "rows/s": _rate(operator.rows_in, operator.seconds),
                    "p50 s": "",
                    "p95 s": "",
                    "retries": "",
                    "dead": operator.dead,
                }
            )
    return rows


def _rate(rows: int, seconds: float) -> float:
    return round(rows / seconds, 1) if seconds > 0 else 0.0
