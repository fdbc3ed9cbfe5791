"""Flow ``ingest``: documents into a vector index.

eval "$(sage env)" && python flows/ingest.py
"""

from __future__ import annotations

import asyncio
from typing import Literal

from prefect import flow
from pydantic import BaseModel, Field

from sage_prefect.kernel.report import RunReport
from sage_prefect.orchestration import cluster_task_runner, run_in_flow
from sage_prefect.orchestration.examples.rag import PYTHON_DOCS, ingest_pipeline


class Corpus(BaseModel):
    """What to read, and under which name it can be searched."""

    docs: list[str] = Field(
        default_factory=list,
        title="Documents",
        description="Files, globs or folders (text, Markdown, HTML, PDF, JSONL...). "
        "Empty: the documentation of Python's standard library.",
        examples=[["/data/handbook/**/*.md"]],
    )
    index: str = Field(PYTHON_DOCS, description="Name of the index; replaced if it exists.")


@flow(name="ingest", task_runner=cluster_task_runner())
async def ingest(
    corpus: Corpus = Corpus(),  # noqa: B008 - Prefect shows the default in its form
    reuse: Literal["always", "unfinished", "never"] = "always",
) -> RunReport:
    """Read, chunk, embed and index documents.

    Args:
        corpus: What to read, and the name of the index.
        reuse: always: nothing runs when neither code nor documents have changed;
            unfinished: resume an interrupted run; never: all anew.
    """
    return await run_in_flow(ingest_pipeline(corpus.docs, corpus.index), reuse=reuse)


if __name__ == "__main__":
    print(asyncio.run(ingest()).committed)
