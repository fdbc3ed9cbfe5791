"""A hand-written flow: SAGE's operators as Prefect tasks, beside a plain task. No ``Pipeline``.

eval "$(sage env)" && python flows/handwritten.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow, task

from sage_prefect import Resources
from sage_prefect.middleware import Embed
from sage_prefect.orchestration import cluster_task_runner

SENTENCES = [
    "Dask runs tasks on many workers.",
    "Prefect schedules flows and shows what they do.",
    "A vector index finds similar texts.",
    "The gateway stands before all engines.",
    "Arrow keeps columns in memory.",
    "Bread rises because of yeast.",
]

# Placed on workers that offer a CPU slot; retried when the engine is busy or gone for a moment.
embed = Embed("all-minilm-l6-v2").as_task(retries=2, resources=Resources(cpu=1))


@task
def nearest(embedded: list[list[dict[str, Any]]], question: list[dict[str, Any]]) -> str:
    """The text whose vector is nearest to the question's."""
    import numpy as np

    rows = [row for batch in embedded for row in batch]
    vectors = np.array([row["embedding"] for row in rows])
    scores = vectors @ np.array(question[0]["embedding"])
    return str(rows[int(scores.argmax())]["text"])


@flow(name="handwritten", task_runner=cluster_task_runner())
async def handwritten(question: str = "What shows me the state of my workflows?") -> str:
    """Embed sentences in batches, in parallel, and find the one nearest to the question.

    Args:
        question: What to look for.
    """
    rows = [{"text": sentence} for sentence in SENTENCES]
    batches = [rows[start : start + 2] for start in range(0, len(rows), 2)]
    embedded = embed.map(batches)
    asked = embed.submit([{"text": question}])
    found = nearest.submit(embedded, asked)
    return await asyncio.to_thread(found.result)


if __name__ == "__main__":
    print(asyncio.run(handwritten()))
