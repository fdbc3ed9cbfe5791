"""Flow ``benchmark``: one experiment of ``sage bench``, so that it can be scheduled.

eval "$(sage env)" && python flows/benchmark.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import acreate_markdown_artifact
from pydantic import BaseModel, Field


class Experiment(BaseModel):
    """Which experiment, and how long."""

    name: str = Field("imports", description="An experiment; `sage bench list` shows all.")
    rounds: int | None = Field(None, ge=1, description="Rounds; empty: its own number.")
    quick: bool = Field(False, description="Small and short: shows that it works, proves nothing.")
    options: dict[str, Any] = Field(default_factory=dict, description="As --set NAME=VALUE.")
    out: str | None = Field(None, description="Results folder; empty: ./results.")


@task(task_run_name="{experiment.name}")
def measure(experiment: Experiment) -> str:
    """Run it; returns the result folder."""
    from sage_bench import registry
    from sage_bench.experiment import RunConfig
    from sage_bench.session import execute

    config = RunConfig(
        rounds=experiment.rounds,
        out=Path(experiment.out) if experiment.out else None,
        quick=experiment.quick,
        options=experiment.options,
        command=["flows/benchmark.py", experiment.name],
    )
    return str(execute(registry.get(experiment.name), config).folder.path)


@flow(name="benchmark")
async def benchmark(experiment: Experiment = Experiment()) -> str:  # noqa: B008
    """Measure, and show where the result lies.

    Args:
        experiment: Which experiment, and how long.
    """
    folder = await asyncio.to_thread(measure.submit(experiment).result)
    await acreate_markdown_artifact(
        key=f"benchmark-{experiment.name}".replace("_", "-"),
        markdown=f"Result folder: `{folder}`. Read it with `sage bench show {folder}`.",
        description=f"Benchmark {experiment.name}",
    )
    return folder


if __name__ == "__main__":
    print(asyncio.run(benchmark(Experiment(quick=True))))
