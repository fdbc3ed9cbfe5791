from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import (
    EngineUnavailable,
    GraphError,
    OperatorError,
    RecordError,
    RequestRejected,
)
from sage_prefect.kernel.operator import OperatorContext, RowFailure
from sage_prefect.middleware import Embed


def embed(operator: Embed, texts: list[Any]) -> pa.RecordBatch:
    operator.setup()
    try:
        return operator.process(pa.RecordBatch.from_pydict({"text": texts}))
    finally:
        operator.close()


def matrix(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("embedding")
    flat: np.ndarray = column.flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


def test_vectors_are_in_the_order_of_the_rows(engine: Any, vector_of: Any) -> None:
    texts = [f"text {'long ' * (n * 7 % 13)}{n}" for n in range(100)]
    made = embed(Embed("m", batch_size=16), texts)
    assert made.column("embedding").type == pa.list_(pa.float32(), 64)
    np.testing.assert_allclose(matrix(made), np.stack([vector_of(t) for t in texts]))
    assert made.column("text").to_pylist() == texts


def test_requests_hold_texts_of_like_length(engine: Any) -> None:
    texts = ["x" * (n * 37 % 100 + 1) for n in range(96)]
    embed(Embed("m", batch_size=16, concurrency=1), texts)
    lengths = sorted([len(text) for text in request] for request in engine.embedded())
    assert [n for request in lengths for n in request] == sorted(len(text) for text in texts)
    assert {len(request) for request in lengths} == {16}


def test_a_small_batch_is_spread_over_the_slots(engine: Any) -> None:
    embed(Embed("m", batch_size=256, concurrency=2), [f"t{n}" for n in range(80)])
    assert sorted(len(request) for request in engine.embedded()) == [40, 40]
    engine.requests.clear()
    embed(Embed("m", batch_size=256, concurrency=2), ["a", "b"])
    assert [len(request) for request in engine.embedded()] == [2]


def test_several_requests_are_in_flight(engine: Any) -> None:
    both = threading.Barrier(2, timeout=20)

    def together(body: dict[str, Any]) -> None:
        both.wait()  # passes only if two requests are here at once

    engine.hook = together
    embed(Embed("m", batch_size=8, concurrency=2), [f"t{n}" for n in range(16)])
    assert engine.most_in_flight == 2


def test_urgency_and_key_travel(engine: Any) -> None:
    operator = Embed("m")
    operator.context = OperatorContext("p", "r", "batch", "search", 1500.0)
    embed(operator, ["a"])
    sent = engine.headers[0]
    assert sent["x-sage-band"] == "batch"
    assert sent["x-sage-tenant"] == "search"
    assert float(sent["x-sage-deadline-ms"]) == 1500.0
    assert sent["authorization"] == "Bearer sk-test"


@pytest.mark.parametrize("bad", [None, "", " \n"])
def test_a_text_of_nothing_names_its_row(engine: Any, bad: str | None) -> None:
    with pytest.raises(RowFailure) as caught:
        embed(Embed("m"), ["a", bad, "c"])
    assert caught.value.row == 1
    assert isinstance(caught.value.error, RecordError)
    assert engine.requests == []


def test_a_refused_text_is_narrowed_down_to_its_row(engine: Any, refusal: Any) -> None:
    def hook(body: dict[str, Any]) -> Any:
        return refusal(400, "cannot embed poison") if "poison" in body["input"] else None

    engine.hook = hook
    texts = [f"t{n}" for n in range(50)]
    texts[37] = "poison"
    with pytest.raises(RowFailure) as caught:
        embed(Embed("m", batch_size=64), texts)
    assert caught.value.row == 37
    assert "cannot embed poison" in str(caught.value.error)


def test_an_unknown_model_blames_no_row(engine: Any, refusal: Any) -> None:
    engine.hook = lambda body: refusal(404, "model 'm' is unknown. Known: x")
    with pytest.raises(RequestRejected, match="is unknown"):
        embed(Embed("m"), ["a", "b"])
    assert len(engine.requests) == 1


def test_models_behind_one_name_must_agree(engine: Any) -> None:
    import base64

    def hook(body: dict[str, Any]) -> Any:
        size = 4 if "short" in body["input"][0] else 8
        data = [
            {"index": i, "embedding": base64.b64encode(np.ones(size, "<f4").tobytes()).decode()}
            for i in range(len(body["input"]))
        ]
        return 200, {"data": data}, {}

    engine.hook = hook
    with pytest.raises(OperatorError, match=r"different lengths: \[4, 8\]"):
        embed(Embed("m", batch_size=1), ["short", "a longer text"])


def test_numbers_that_are_not_finite_are_refused(engine: Any) -> None:
    engine.hook = lambda body: (200, {"data": [{"index": 0, "embedding": [1e999, 0.0]}]}, {})
    with pytest.raises((OperatorError, EngineUnavailable)):
        embed(Embed("m"), ["a"])


def test_no_rows(engine: Any) -> None:
    operator = Embed("m")
    operator.setup()
    try:
        batch = pa.RecordBatch.from_pydict({"text": pa.array([], pa.string())})
        made = operator.process(batch)
    finally:
        operator.close()
    assert made.schema.names == ["text", "embedding"]
    assert engine.requests == []


def test_no_engine_is_an_error_that_a_retry_may_cure(
    monkeypatch: pytest.MonkeyPatch, free_port: Any
) -> None:
    monkeypatch.setenv("SAGE_BASE_URL", f"http://127.0.0.1:{free_port()}")
    pipeline = Pipeline("p").source([{"text": "a"}]).map(Embed("m")).sink()
    with pytest.raises(OperatorError, match="operator 'embed' failed in partition 1/1") as caught:
        pipeline.run(retries=0)
    assert caught.value.retryable


def test_dead_letters_keep_the_other_rows(engine: Any, refusal: Any) -> None:
    def hook(body: dict[str, Any]) -> Any:
        return refusal(400, "no") if any("bad" in text for text in body["input"]) else None

    engine.hook = hook
    texts = [{"text": t} for t in ("a", "bad one", "b", None, "c")]
    report = Pipeline("p").source(texts).map(Embed("m"), on_error="dead_letter").sink().run()
    assert report.committed.data.column("text").to_pylist() == ["a", "b", "c"]
    assert [letter.row for letter in report.dead_letters] == [{"text": "bad one"}, {"text": None}]


def test_parameters() -> None:
    with pytest.raises(GraphError, match="batch_size=0"):
        Embed("m", batch_size=0)
    operator = Embed("m", column="question", into="v")
    assert (operator.reads, operator.adds) == (("question",), ("v",))
    with pytest.raises(OperatorError, match="before setup"):
        operator.process(pa.RecordBatch.from_pydict({"question": ["a"]}))
