"""Retrieval-augmented answers: one pipeline indexes documents, the other answers questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from sage_prefect.common.settings import load_settings
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.resources import Resources
from sage_prefect.middleware import (
    Chunk,
    Embed,
    Generate,
    Prompt,
    PythonDocs,
    ReadFiles,
    Retrieve,
    WriteParquet,
    WriteVectors,
)

#: Questions about the Python standard library; ``expected`` lists the sources that answer each.
QUESTIONS = str(files("sage_prefect.orchestration.examples") / "questions.jsonl")
#: Name of the index of the Python documentation.
PYTHON_DOCS = "python-docs"

TEMPLATE = """\
Answer the question in one or two sentences, using only the documentation below.

{context}

Question: {question}
Answer:"""


def ingest_pipeline(
    docs: Sequence[str] = (), index: str = PYTHON_DOCS, embedding: str | None = None
) -> Pipeline:
    """Read documents, cut them into chunks, embed these and write them to index ``index``.

    Args:
        docs: files, globs or folders; none: the documentation of the installed Python's standard
            library. A file that cannot be read is set aside and reported.
        index: the collection to (re)place.
        embedding: a model that the gateway serves; None: that of the settings.
    """
    model = embedding or load_settings().engines.embedding
    # The language reference (`help`) is a quarter of the text and describes no module.
    source = ReadFiles(list(docs)) if docs else PythonDocs(exclude=("help",))
    return (
        Pipeline("ingest")
        .source(source, on_error="dead_letter")
        .map(Chunk(max_tokens=256, overlap=32))
        .map(Embed(model), resources=Resources(cpu=1))
        .sink(WriteVectors(index))
    )


def answer_pipeline(
    questions: str | Sequence[Mapping[str, Any]] = QUESTIONS,
    index: str = PYTHON_DOCS,
    model: str | None = None,
    embedding: str | None = None,
    k: int = 4,
    max_tokens: int = 48,
    output: str = "answers",
) -> Pipeline:
    """Answer questions from index ``index``, citing sources.

    The result has the columns of the questions and ``passages``, ``sources``, ``context``,
    ``prompt``, ``answer``, ``answer_completion_tokens``, ``answer_latency_ms``, ``engine``.

    Args:
        questions: a file (JSONL, CSV, Parquet) with a column ``question``, or rows.
        index: what :func:`ingest_pipeline` wrote.
        model, embedding: models that the gateway serves; None: those of the settings.
        k: passages to retrieve per question.
        max_tokens: bound of an answer.
        output: name or path of the Parquet file.
    """
    engines = load_settings().engines
    source: Any = (
        ReadFiles(questions, rows_per_part=4) if isinstance(questions, str) else list(questions)
    )
    return (
        Pipeline("answer")
        .source(source)
        .map(Embed(embedding or engines.embedding, column="question"), resources=Resources(cpu=1))
        .map(Retrieve(index, k=k, context_tokens=350))
        # A question that leaves no room for its answer is set aside, not cut silently.
        .map(
            Prompt(TEMPLATE, max_tokens=engines.llm_context - max_tokens - 200),
            on_error="dead_letter",
        )
        .map(
            Generate(model or engines.llm, max_tokens=max_tokens, concurrency=engines.llm_slots),
            resources=Resources(gpu=1),
        )
        .sink(WriteParquet(output))
    )
