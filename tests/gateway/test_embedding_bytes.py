"""Embedding calls and answers are cut and joined without touching a byte of input or vector."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.embedding_answer import BadAnswer, read_vectors
from sage_gateway.embedding_call import EmbeddingCall
from sage_gateway.json_splice import element_spans
from sage_gateway.vector_collection import VectorCollection, shared

SPACE = st.text(" \t\n\r", max_size=3)
NUMBER = st.from_regex(
    r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
)
TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=6)
IDS = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), min_size=1, max_size=4)
OTHERS = st.dictionaries(
    st.sampled_from(["user", "dimensions", "encoding_format", 'in"put', "x", "\u00efnput"]),
    st.none() | st.integers(-(2**40), 2**40) | st.text(max_size=6) | st.lists(st.text(max_size=3)),
    max_size=4,
)


@st.composite
def vector_texts(draw: st.DrawFn, size: int) -> str:
    numbers = [draw(NUMBER) for _ in range(size)]
    return "[" + ",".join(draw(SPACE) + number + draw(SPACE) for number in numbers) + "]"


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """An engine's answer in any layout, and the vectors in it."""
    count = draw(st.integers(1, 5))
    if draw(st.booleans()):
        size = draw(st.integers(1, 6))
        vectors = [draw(vector_texts(size)) for _ in range(count)]
    else:
        size = draw(st.integers(1, 8))
        text = st.text("ABCxyz019+/", min_size=size, max_size=size)
        vectors = [f'"{draw(text)}"' for _ in range(count)]
    items = []
    for index, vector in enumerate(vectors):
        fields = [
            f'"index"{draw(SPACE)}:{draw(SPACE)}{index}',
            f'"embedding":{draw(SPACE)}{vector}',
        ]
        # Texts that look like the real thing.
        fields.append('"object": ' + json.dumps(draw(st.sampled_from(
            ["embedding", '"embedding":[9,9]', '\\"embedding\\":"AA"', "}],[{"]
        ))))  # fmt: skip
        if index and draw(st.booleans()):
            del fields[0]  # some servers leave it out
        items.append("{" + ",".join(draw(st.permutations(fields))) + "}")
    parts = [
        '"data":' + draw(SPACE) + "[" + ("," + draw(SPACE)).join(items) + draw(SPACE) + "]",
        '"model":"embedding"',
        '"usage":{"prompt_tokens":7,"total_tokens":8}',
        '"object":"list"',
    ]
    text = "{" + ",".join(draw(SPACE) + part for part in draw(st.permutations(parts))) + "}"
    return text.encode(), [vector.encode() for vector in vectors]


@given(answers())
def test_vectors_come_out_in_the_engines_bytes(case: tuple[bytes, list[bytes]]) -> None:
    answer, vectors = case
    found = read_vectors(answer, len(vectors))
    assert found.vectors == vectors
    assert (found.prompt_tokens, found.total_tokens) == (7, 8)


@given(answers(), st.data())
def test_a_damaged_answer_is_refused_or_holds_the_same(
    case: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    """Whatever is lost or doubled: nobody gets a vector that is not at their place."""
    answer, vectors = case
    start = data.draw(st.integers(0, len(answer)))
    end = data.draw(st.integers(start, min(len(answer), start + 20)))
    again = data.draw(st.sampled_from([0, 0, 2]))
    damaged = answer[:start] + again * answer[start:end] + answer[end:]
    try:
        found = read_vectors(damaged, len(vectors))
    except BadAnswer:
        return
    whole = orjson.loads(damaged)
    assert [orjson.loads(one) for one in found.vectors] == [
        item["embedding"] for item in whole["data"]
    ]
    assert [item.get("index", at) for at, item in enumerate(whole["data"])] == list(
        range(len(vectors))
    )


@given(answers(), st.integers(-2, 8))
def test_another_number_of_vectors_is_refused(case: tuple[bytes, list[bytes]], more: int) -> None:
    answer, vectors = case
    if more:
        with pytest.raises(BadAnswer, match="vectors to"):
            read_vectors(answer, len(vectors) + more)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"null", "no JSON object"),
        (b'{"data":[1]}', "no object"),
        (b'{"data":[{"index":0}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":null}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":5}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":[1', "not JSON"),
        (b'{"data":[{"index":0,"embedding":"AA', "not JSON"),
        (b'{"data":[{"index":0,"embedding":"', "not JSON"),
        (b'{"data":[{"index":0,"embedding":[]}]}', "no vector"),
        (b'{"data":[{"index":0,"embedding":""}]}', "no vector"),
        (b'{"data":[{"index":0,"embedding":[[1]]}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":["1"]}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":[true]}]}', "no vector"),
        (b'{"data":[{"index":0,"embedding":[NaN]}]}', "not JSON"),
        (b'{"data":[{"index":0,"embedding":[1,]}]}', "not JSON"),
        (b'{"data":[{"index":1,"embedding":[1]}]}', "under the index 1"),
        (b'{"data":[{"index":"0","embedding":[1]}]}', "under the index '0'"),
        (b'{"data":[{"index":false,"embedding":[1]}]}', "under the index False"),
        (b'{"data":[{"index":0,"embedding":[1],"x":{"embedding":[2]}}]}', "unexpected places"),
        (b'{"data":[{"index":0,"embedding":[1],"embedding":[2]}]}', "without a vector 0"),
        (b'{"data":[{"index":0,"embedding":[1]}],"data":[{"embedding":[2]}]}', "a vector 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(answer: bytes, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        read_vectors(answer, 1)


def test_a_second_vector_does_not_stand_in_for_a_lacking_one() -> None:
    answer = b'{"data":[{"index":0,"embedding":[1],"embedding":[2]},{"index":1,"embedding":[[3]]}]}'
    with pytest.raises(BadAnswer):
        read_vectors(answer, 2)


@given(TEXTS | IDS | st.text(min_size=1, max_size=20), OTHERS, st.booleans(), st.data())
def test_inputs_go_in_the_clients_bytes(
    value: Any, others: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    fields = data.draw(st.permutations([("model", "m"), ("input", value), *others.items()]))
    indent = data.draw(st.sampled_from([None, 1, "\t"]))
    raw = json.dumps(dict(fields), indent=indent, ensure_ascii=ascii_only).encode()
    call = EmbeddingCall(raw, orjson.loads(raw))
    inputs = value if isinstance(value, list) else [value]
    assert [orjson.loads(one) for one in call.inputs] == inputs
    assert all(one in raw for one in call.inputs)
    merged = orjson.loads(call.with_inputs([b'"a"', *call.inputs], "there"))
    assert merged == {**dict(fields), "model": "there", "input": ["a", *inputs]}
    assert orjson.loads(call.with_inputs([b"[1]"], None))["model"] == "m"


def test_bare_token_ids_are_one_input() -> None:
    raw = b'{"model":"m","input":[1, 2 ,3]}'
    assert EmbeddingCall(raw, orjson.loads(raw)).inputs == [b"[1, 2 ,3]"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"in\\u0070ut":["a","b"],"model":"m"}',
        b'{"input":["x"],"model":"m","input":["a","b"]}',
    ],
)
def test_odd_keys(raw: bytes) -> None:
    call = EmbeddingCall(raw, orjson.loads(raw))
    assert call.inputs == [b'"a"', b'"b"']
    merged = call.with_inputs([b'"c"'], None)
    assert orjson.loads(merged)["input"] == ["c"]
    assert b'"x"' not in merged


@given(st.lists(st.recursive(st.integers() | st.text(max_size=5), st.lists, max_leaves=5)))
def test_elements(values: list[Any]) -> None:
    for indent in (None, 2):
        body = json.dumps(values, indent=indent).encode()
        spans = element_spans(body, 0)
        assert [json.loads(body[start:end]) for start, end in spans] == values


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_shares_add_up(total: int, weights: list[int]) -> None:
    parts = shared(total, weights)
    assert sum(parts) == total
    whole = sum(weights) or len(weights)
    for part, weight in zip(parts, weights if any(weights) else [1] * len(weights), strict=True):
        assert abs(part - total * weight / whole) <= 1


def test_a_collection_answers_in_order_whatever_the_batches() -> None:
    collection = VectorCollection('m"', 3)
    collection.put(2, b"[3.0]")
    collection.put(0, b"[1.0]")
    collection.used(5, 6)
    assert not collection.complete
    collection.put(1, b"[2.50]")
    collection.used(3, None)
    assert collection.complete
    answer = collection.answer()
    assert b"[2.50]" in answer
    assert orjson.loads(answer) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": [value]}
            for at, value in enumerate([1.0, 2.5, 3.0])
        ],
        "model": 'm"',
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    with pytest.raises(RuntimeError, match="twice"):
        collection.put(1, b"[9]")
