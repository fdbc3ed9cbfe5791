from __future__ import annotations

import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, MissingColumnError, RecordError
from sage_prefect.kernel.operator import RowFailure
from sage_prefect.libs.prompts import CUT_MARK
from sage_prefect.libs.tokens import count_tokens
from sage_prefect.middleware import Prompt

TEMPLATE = "Use the context.\n{context}\n\nQuestion: {question}"


def prompts(operator: Prompt, rows: list[dict[str, object]]) -> list[str]:
    made = operator.process(pa.RecordBatch.from_pylist(rows))
    found: list[str] = made.column(operator.into).to_pylist()
    return found


def test_fills_columns_in() -> None:
    rows: list[dict[str, object]] = [
        {"context": "C", "question": "Q"},
        {"context": None, "question": "R"},
    ]
    assert prompts(Prompt(TEMPLATE), rows) == [
        "Use the context.\nC\n\nQuestion: Q",
        "Use the context.\n\n\nQuestion: R",
    ]


def test_fields_are_checked_when_the_pipeline_is_built() -> None:
    with pytest.raises(MissingColumnError, match="'context'"):
        Pipeline("p").source([{"question": "q"}]).map(Prompt(TEMPLATE))


def test_context_gives_way_to_the_question() -> None:
    rows: list[dict[str, object]] = [{"context": "A sentence. " * 500, "question": "Why?"}]
    text = prompts(Prompt(TEMPLATE, max_tokens=200), rows)[0]
    assert count_tokens(text) <= 200
    assert CUT_MARK in text
    assert text.endswith("Question: Why?")


def test_a_question_of_a_hundred_thousand_characters_names_its_row() -> None:
    rows: list[dict[str, object]] = [
        {"context": "c", "question": "short"},
        {"context": "c", "question": "word " * 20_000},
    ]
    with pytest.raises(RowFailure) as caught:
        prompts(Prompt(TEMPLATE, max_tokens=1900), rows)
    assert caught.value.row == 1
    assert isinstance(caught.value.error, RecordError)
    assert "question 20000" in str(caught.value.error)
    cut = prompts(Prompt(TEMPLATE, max_tokens=1900, trim=("context", "question")), rows)
    assert count_tokens(cut[1]) <= 1900


def test_wrong_templates() -> None:
    with pytest.raises(GraphError, match=r"\{a\.b\}"):
        Prompt("{a.b}")
    with pytest.raises(GraphError, match="max_tokens=0"):
        Prompt("{a}", max_tokens=0)
