from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, OperatorError, VectorIndexError
from sage_prefect.middleware import (
    Chunk,
    Embed,
    Generate,
    Prompt,
    Retrieve,
    WriteParquet,
    WriteVectors,
    open_collection,
)

DOCUMENTS = [
    {"source": "cats", "text": "cats purr and sleep all day"},
    {"source": "dogs", "text": "dogs bark and run all day"},
    {"source": "fish", "text": "fish swim in water"},
    {"source": "long", "text": "birds sing songs at dawn. " * 30},
]


@pytest.fixture
def docs(engine: Any) -> None:
    """A collection of the documents."""
    Pipeline("ingest").source(DOCUMENTS).map(Chunk(max_tokens=64, overlap=8)).map(Embed("m")).sink(
        WriteVectors("docs")
    ).run()
    engine.requests.clear()


def ask(question: str, **options: Any) -> dict[str, Any]:
    report = (
        Pipeline("ask")
        .source([{"question": question}])
        .map(Embed("m", column="question"))
        .map(Retrieve("docs", **options))
        .sink()
        .run()
    )
    row: dict[str, Any] = report.committed.data.to_pylist()[0]
    return row


@pytest.mark.usefixtures("docs")
def test_the_nearest_passages_best_first() -> None:
    row = ask("where do fish swim", k=2)
    assert row["passages"][0]["source"] == "fish"
    scores = [passage["score"] for passage in row["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert row["sources"][0] == "fish"
    assert row["context"].startswith("[1] fish\nfish swim in water\n\n[2] ")


@pytest.mark.usefixtures("docs")
def test_a_source_is_named_once() -> None:
    row = ask("birds sing songs at dawn", k=3)
    assert [passage["source"] for passage in row["passages"]] == ["long", "long", "long"]
    assert row["sources"] == ["long"]


@pytest.mark.usefixtures("docs")
def test_more_than_there_is() -> None:
    total = len(open_collection("docs"))
    row = ask("anything", k=100)
    assert len(row["passages"]) == total


@pytest.mark.usefixtures("docs")
def test_context_keeps_its_budget() -> None:
    row = ask("cats purr", k=4, context_tokens=12)
    assert "[2]" not in row["context"]
    # What does not fit is found, and not cited.
    assert len(row["passages"]) == 4
    assert row["sources"] == [row["passages"][0]["source"]]


@pytest.mark.usefixtures("docs")
def test_names_and_columns() -> None:
    row = ask("cats", into="p", sources_into="s", context_into="c", source_column="chunk_id", k=1)
    assert row["s"] == ["cats#0"]
    with pytest.raises(OperatorError, match="has no column 'txt'"):
        ask("cats", text_column="txt")


@pytest.mark.usefixtures("docs")
def test_the_key_follows_the_collection() -> None:
    operator = Retrieve("docs")
    before = operator.content_key()
    assert Retrieve("docs").content_key() == before
    Pipeline("other").source(DOCUMENTS[:2]).map(Chunk()).map(Embed("m")).sink(
        WriteVectors("docs")
    ).run()
    assert Retrieve("docs").content_key() != before
    assert Retrieve("nothing").state_key() == ""


def test_a_missing_collection_lists_those_there_are(docs: None) -> None:
    with pytest.raises(VectorIndexError, match="no index 'dosc'") as caught:
        Retrieve("dosc").setup()
    assert "Did you mean 'docs'?" in str(caught.value)
    assert "WriteVectors('dosc')" in str(caught.value)
    with pytest.raises(OperatorError, match="no index 'dosc'"):
        Pipeline("p").source([{"embedding": [1.0]}]).map(Retrieve("dosc")).sink().run()


@pytest.mark.usefixtures("docs")
def test_vectors_of_another_model() -> None:
    pipeline = Pipeline("p").source([{"embedding": [1.0, 2.0]}]).map(Retrieve("docs")).sink()
    with pytest.raises(OperatorError, match=r"shape \(1, 2\) do not fit .* dimension 64"):
        pipeline.run()


def test_parameters() -> None:
    with pytest.raises(GraphError, match="k=0"):
        Retrieve("docs", k=0)
    with pytest.raises(OperatorError, match="before setup"):
        Retrieve("docs").process(pa.RecordBatch.from_pydict({"embedding": [[1.0]]}))


@pytest.mark.usefixtures("docs")
def test_questions_to_answers(engine: Any) -> None:
    report = (
        Pipeline("answer")
        .source([{"question": "do cats purr"}, {"question": "do dogs bark"}])
        .map(Embed("m", column="question"))
        .map(Retrieve("docs", k=2))
        .map(Prompt("Use the context.\n{context}\n\nQuestion: {question}", max_tokens=500))
        .map(Generate("llm"))
        .sink(WriteParquet("answers"))
        .run()
    )
    import pyarrow.parquet as pq

    rows = pq.read_table(report.committed.location).to_pylist()
    assert [row["sources"][0] for row in rows] == ["cats", "dogs"]
    assert rows[0]["answer"].startswith("re: Use the context.\n[1] cats\n")
    assert rows[0]["answer"].endswith("Question: do cats purr")
