from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, MissingColumnError, RecordError
from sage_prefect.libs.tokens import SPECIAL_TOKENS, count_tokens
from sage_prefect.middleware import Chunk

LONG = "One sentence of some words follows another one. " * 40

DOCSTRING = (
    "json.dumps(obj, *, ...)\nSerialize obj to a JSON formatted str.\n\n"
    "If skipkeys is true then dict keys that are not basic types will be skipped instead of "
    "raising a TypeError. If check_circular is false, then the circular reference check will be "
    "skipped and a circular reference will result in a RecursionError, or worse."
)


def rows(*given: dict[str, object]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(given))


def test_a_short_text_stays_as_it_is() -> None:
    made = Chunk().process(rows({"source": "a", "title": "T", "text": "Short doc.", "n": 7}))
    assert made.to_pylist() == [
        {
            "source": "a",
            "title": "T",
            "text": "Short doc.",
            "n": 7,
            "chunk": 0,
            "chunk_id": "a#0",
        }
    ]


def test_a_long_text_becomes_rows_that_repeat_the_other_columns() -> None:
    batch = rows(
        {"source": "a", "text": LONG, "n": 1},
        {"source": "b", "text": "x", "n": 2},
        {"source": "c", "text": None, "n": 3},
        {"source": "d", "text": "  \n", "n": 4},
    )
    made = Chunk(max_tokens=64, overlap=8).process(batch).to_pylist()
    of_a = [row for row in made if row["source"] == "a"]
    assert len(of_a) > 4
    assert [row["chunk_id"] for row in of_a] == [f"a#{n}" for n in range(len(of_a))]
    assert {row["n"] for row in of_a} == {1}
    assert made[-1]["chunk_id"] == "b#0"
    assert not any(row["source"] in "cd" for row in made)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=3000) | st.sampled_from([LONG, DOCSTRING]),
    title=st.text(max_size=400),
    max_tokens=st.integers(16, 96),
    context=st.booleans(),
    lead=st.booleans(),
)
def test_no_chunk_is_over_the_budget(
    text: str, title: str, max_tokens: int, context: bool, lead: bool
) -> None:
    operator = Chunk(max_tokens=max_tokens, overlap=4, context=context, lead=lead)
    batch = rows({"source": "s", "title": title, "text": text})
    for row in operator.process(batch).to_pylist():
        assert count_tokens(row["text"]) <= max_tokens - SPECIAL_TOKENS


def test_title_and_headings_stand_before_chunks_of_a_cut_text() -> None:
    text = f"# Guide\n{LONG}\n## Install\n{LONG}"
    operator = Chunk(max_tokens=96, overlap=0)
    made = operator.process(rows({"source": "s", "title": "Doc", "text": text})).to_pylist()
    assert made[1]["text"].startswith("Doc > Guide\n")
    assert made[-1]["text"].startswith("Doc > Guide > Install\n")
    plain = Chunk(max_tokens=96, overlap=0, context=False)
    made = plain.process(rows({"source": "s", "title": "Doc", "text": text})).to_pylist()
    assert not any("Doc" in row["text"] for row in made)


def test_a_chunk_that_begins_with_the_title_does_not_say_it_twice() -> None:
    text = f"shlex.split(s)\n{LONG}"
    batch = rows({"source": "s", "title": "shlex.split(s)", "text": text})
    first, second, *_ = Chunk(max_tokens=64, overlap=8).process(batch).to_pylist()
    assert first["text"].count("shlex.split(s)") == 1
    assert second["text"].startswith("shlex.split(s)\n")


def test_a_summary_is_a_chunk_of_its_own() -> None:
    batch = rows({"source": "s", "title": "json.dumps(obj, *, ...)", "text": DOCSTRING})
    first, second = Chunk().process(batch).column("text").to_pylist()
    assert first == "json.dumps(obj, *, ...)\nSerialize obj to a JSON formatted str."
    assert second.startswith("json.dumps(obj, *, ...)\nIf skipkeys is true")
    assert Chunk(lead=False).process(batch).column("text").to_pylist() == [DOCSTRING]


@pytest.mark.parametrize(
    "text",
    [
        "A summary of this function is here.\n\nLittle follows.",
        "word " * 80 + "\n\n" + "word " * 80,  # no summary, a paragraph
        "no paragraph at all " * 10,
    ],
)
def test_where_there_is_no_summary_the_text_stays_whole(text: str) -> None:
    made = Chunk().process(rows({"source": "s", "text": text}))
    assert made.column("text").to_pylist() == [text.strip()]


def test_a_heading_alone_is_no_summary() -> None:
    text = "# Guide\n\nThis guide tells how to do it.\n\n## First\n\n" + "Some words. " * 30
    made = Chunk().process(rows({"source": "s", "title": "Guide", "text": text}))
    first, second = made.column("text").to_pylist()
    assert first == "# Guide\n\nThis guide tells how to do it."
    assert second.startswith("Guide > First\n## First")


def test_other_columns_may_be_cut_and_named() -> None:
    operator = Chunk(max_tokens=32, overlap=0, column="body", id_column="url")
    assert operator.reads == ("body", "url")
    made = operator.process(rows({"url": "u", "body": "word " * 60})).to_pylist()
    assert [row["chunk_id"] for row in made] == ["u#0", "u#1"]


def test_nothing_in_nothing_out() -> None:
    empty = rows({"source": "a", "text": "x"}).slice(0, 0)
    made = Chunk().process(empty)
    assert made.num_rows == 0
    assert made.schema.names == ["source", "text", "chunk", "chunk_id"]


def test_errors() -> None:
    with pytest.raises(GraphError, match="max_tokens=4 is too small"):
        Chunk(max_tokens=4)
    with pytest.raises(GraphError, match="overlap=200"):
        Chunk(overlap=200)
    with pytest.raises(RecordError, match="holds int64, not text"):
        Chunk().process(rows({"source": "a", "text": 3}))
    with pytest.raises(MissingColumnError, match="'source'"):
        Pipeline("p").source([{"text": "x"}]).map(Chunk())


def test_travels_as_class_and_parameters() -> None:
    again = pickle.loads(pickle.dumps(Chunk(64, column="body")))
    assert dict(again.params) == dict(Chunk(64, column="body").params)
    assert again.reads == ("body", "source")
