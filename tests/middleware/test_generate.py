from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, OperatorError, RecordError, RequestRejected
from sage_prefect.kernel.operator import OperatorContext, RowFailure
from sage_prefect.middleware import Generate


def generate(operator: Generate, prompts: list[Any]) -> list[dict[str, Any]]:
    operator.setup()
    try:
        made = operator.process(pa.RecordBatch.from_pydict({"prompt": prompts}))
        rows: list[dict[str, Any]] = made.to_pylist()
        return rows
    finally:
        operator.close()


def test_adds_answers_and_what_they_cost(engine: Any) -> None:
    prompts = [f"question {n}" for n in range(10)]
    rows = generate(Generate("m"), prompts)
    assert [row["answer"] for row in rows] == [f"re: {prompt}" for prompt in prompts]
    assert {row["engine"] for row in rows} == {"tiny"}
    assert {row["answer_prompt_tokens"] for row in rows} == {7}
    assert {row["answer_completion_tokens"] for row in rows} == {3}
    assert all(row["answer_latency_ms"] > 0 for row in rows)


def test_sends_what_it_was_told(engine: Any) -> None:
    operator = Generate("m", max_tokens=5, temperature=0.0, system="Be brief.")
    operator.context = OperatorContext("p", "r", "interactive")
    generate(operator, ["q"])
    body = engine.requests[0]
    assert body["model"] == "m"
    assert body["max_tokens"] == 5
    assert body["temperature"] == 0
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
    ]
    assert engine.headers[0]["x-sage-band"] == "interactive"


def test_an_engine_that_does_not_count(engine: Any) -> None:
    message = {"role": "assistant", "content": "hi"}
    engine.hook = lambda body: (200, {"choices": [{"index": 0, "message": message}]}, {})
    row = generate(Generate("m", into="reply"), ["q"])[0]
    assert row["reply"] == "hi"
    assert row["reply_prompt_tokens"] is row["reply_completion_tokens"] is row["engine"] is None


def test_rows_are_asked_side_by_side(engine: Any) -> None:
    both = threading.Barrier(3, timeout=20)

    def together(body: dict[str, Any]) -> None:
        both.wait()  # passes only if three requests are here at once

    engine.hook = together
    generate(Generate("m", concurrency=3), [str(n) for n in range(9)])
    assert engine.most_in_flight == 3


def test_a_prompt_beyond_the_context_names_its_row_and_the_way_out(
    engine: Any, refusal: Any
) -> None:
    def hook(body: dict[str, Any]) -> Any:
        if len(body["messages"][-1]["content"]) > 1000:
            return refusal(400, "request (25000 tokens) exceeds the available context size (2048)")
        return None

    engine.hook = hook
    with pytest.raises(RowFailure) as caught:
        generate(Generate("m"), ["short", "word " * 20_000, "other"])
    assert caught.value.row == 1
    error = caught.value.error
    assert isinstance(error, RecordError)
    assert "prompt of 100000 characters (about 20000 tokens)" in error.message
    assert "context size" in error.message
    assert "Prompt(..., max_tokens=...)" in str(error.hint)


@pytest.mark.parametrize("bad", [None, "", "  "])
def test_an_empty_prompt_names_its_row(engine: Any, bad: str | None) -> None:
    with pytest.raises(RowFailure) as caught:
        generate(Generate("m"), ["a", bad])
    assert caught.value.row == 1


def test_a_wrong_key_blames_no_row(engine: Any, refusal: Any) -> None:
    engine.hook = lambda body: refusal(401, "wrong key")
    with pytest.raises(RequestRejected, match="wrong key"):
        generate(Generate("m"), ["a", "b"])


def test_dead_letters_ask_no_question_twice(engine: Any, refusal: Any) -> None:
    def hook(body: dict[str, Any]) -> Any:
        return refusal(400, "no") if "bad" in body["messages"][-1]["content"] else None

    engine.hook = hook
    prompts = [{"prompt": p} for p in ("a", "b", "bad", "c", "c", "d")]
    report = (
        Pipeline("p")
        .source(prompts)
        .map(Generate("m", concurrency=1), on_error="dead_letter")
        .sink()
        .run()
    )
    answers = report.committed.data.column("answer").to_pylist()
    assert answers == ["re: a", "re: b", "re: c", "re: c", "re: d"]
    assert [letter.row for letter in report.dead_letters] == [{"prompt": "bad"}]
    assert engine.asked() in (
        ["a", "b", "bad", "c", "c", "d"],
        ["a", "b", "bad", "bad", "c", "c", "d"],
    )


def test_parameters() -> None:
    for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"concurrency": 0}):
        with pytest.raises(GraphError, match="out of range"):
            Generate("m", **wrong)
    assert Generate("m", into="x").adds == (
        "x",
        "x_prompt_tokens",
        "x_completion_tokens",
        "x_latency_ms",
        "engine",
    )
    with pytest.raises(OperatorError, match="before setup"):
        Generate("m").process(pa.RecordBatch.from_pydict({"prompt": ["a"]}))
