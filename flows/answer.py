"""Flow ``answer``: questions into answers with sources.

eval "$(sage env)" && python flows/answer.py
"""

from __future__ import annotations

import asyncio

from prefect import flow
from pydantic import BaseModel, Field

from sage_prefect.kernel.report import RunReport
from sage_prefect.orchestration import cluster_task_runner, run_in_flow
from sage_prefect.orchestration.examples.rag import PYTHON_DOCS, QUESTIONS, answer_pipeline


class Questions(BaseModel):
    """What to ask, of which index."""

    file: str = Field(QUESTIONS, description="JSONL, CSV or Parquet file with a column `question`.")
    index: str = Field(PYTHON_DOCS, description="Index to search.")
    k: int = Field(4, ge=1, le=50, description="Passages to retrieve per question.")


class Answers(BaseModel):
    """How to answer, and where to write."""

    max_tokens: int = Field(48, ge=1, le=4096, description="Bound of an answer, in tokens.")
    output: str = Field("answers", description="Name or path of the Parquet file.")


@flow(name="answer", task_runner=cluster_task_runner())
async def answer(
    questions: Questions = Questions(),  # noqa: B008 - Prefect shows the default in its form
    answers: Answers = Answers(),  # noqa: B008
) -> RunReport:
    """Retrieve passages for each question and let the model answer from them.

    Args:
        questions: What to ask, of which index.
        answers: How to answer, and where to write.
    """
    pipeline = answer_pipeline(
        questions.file,
        questions.index,
        k=questions.k,
        max_tokens=answers.max_tokens,
        output=answers.output,
    )
    return await run_in_flow(pipeline)


if __name__ == "__main__":
    print(asyncio.run(answer()).committed)
