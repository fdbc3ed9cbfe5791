from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.libs.prompts import CUT_MARK, BudgetError, Template, cut_to, numbered_passages
from sage_prefect.libs.tokens import count_tokens


def test_fields_in_order_each_once() -> None:
    template = Template("{context} {question} {context} {{json}}")
    assert template.fields == ("context", "question")
    assert template.render({"context": "C", "question": "Q"}) == "C Q C {json}"


def test_values_are_not_templates() -> None:
    assert Template("{a}").render({"a": "{b} {0} %s"}) == "{b} {0} %s"


def test_null_is_empty_and_numbers_are_shown() -> None:
    assert Template("{a}|{b}").render({"a": None, "b": 3}) == "|3"


@pytest.mark.parametrize(
    "text", ["{", "}", "{a", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}"]
)
def test_wrong_templates_are_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match=r"\{\{"):
        Template(text)


def test_missing_value() -> None:
    with pytest.raises(KeyError, match="b"):
        Template("{a}{b}").render({"a": 1})


def test_fit_leaves_alone_what_fits() -> None:
    assert Template("{q}").fit({"q": "short"}, 10) == "short"


@given(
    context=st.text(max_size=500),
    question=st.text(max_size=60),
    budget=st.integers(5, 200),
    uses=st.integers(1, 3),
)
def test_fit_keeps_the_budget_and_the_question(
    context: str, question: str, budget: int, uses: int
) -> None:
    template = Template("{context}\n" * uses + "Q {question} !")
    values = {"context": context, "question": question}
    bare = count_tokens(template.render({**values, "context": ""}))
    if bare > budget:
        with pytest.raises(BudgetError):
            template.fit(values, budget)
        return
    text = template.fit(values, budget)
    assert count_tokens(text) <= budget
    assert question in text


def test_fit_marks_what_it_cut() -> None:
    text = Template("{context} Q: {question}").fit(
        {"context": "A sentence here. " * 50, "question": "why"}, 60
    )
    assert CUT_MARK in text
    assert text.endswith("Q: why")


def test_a_question_is_never_cut() -> None:
    with pytest.raises(BudgetError, match="question 1000"):
        Template("{context}{question}").fit({"context": "c", "question": "word " * 1000}, 100)


@given(text=st.text(max_size=2000), budget=st.integers(0, 80))
def test_cut_to_keeps_the_budget(text: str, budget: int) -> None:
    cut = cut_to(text, budget)
    assert count_tokens(cut) <= max(budget, 0)
    assert cut == text or cut == "" or cut.endswith(CUT_MARK)


def test_cut_to_a_huge_text() -> None:
    assert count_tokens(cut_to("x" * 5_000_000, 100)) <= 100
    assert cut_to(" " * 5_000_000, 100).strip() == CUT_MARK.strip()


def test_passages_are_numbered_and_stop_at_the_budget() -> None:
    passages = [("a", "one two three"), ("b", "four five six"), ("c", "word " * 200), ("d", "x")]
    text, fitted = numbered_passages(passages, 50)
    assert fitted == 2
    assert text == "[1] a\none two three\n\n[2] b\nfour five six"


def test_a_long_first_passage_is_cut_not_dropped() -> None:
    text, fitted = numbered_passages([("a", "word " * 500)], 50)
    assert fitted == 1
    assert text.startswith("[1] a\nword word")
    assert text.endswith(CUT_MARK)
    assert count_tokens(text) <= 50
