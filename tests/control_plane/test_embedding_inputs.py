from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.embedding_inputs import MAX_KEYED_INPUTS, measure_inputs, merge_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def embed(value: Any, tokens: int = 100, **options: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return measure_inputs("embedding", {"model": "m", "input": value, **options}, tokens)


def test_lengths_are_shares_of_the_body() -> None:
    assert embed("a text")[0] == (100,)
    assert embed(["a" * 10, "b" * 30])[0] == (25, 75)
    assert embed(["ü" * 5, "b" * 30])[0] == (25, 75)
    assert embed(["", "b" * 30])[0] == (1, 100)
    assert embed([""])[0] == (1,)


def test_token_ids_are_counted() -> None:
    assert embed([5, 6, 7])[0] == (3,)
    assert embed([[5, 6, 7], [8]])[0] == (3, 1)
    assert embed([[]])[0] == (1,)


def test_equal_inputs_have_equal_keys() -> None:
    _, (a, b, again) = embed(["a", "b", "a"])
    assert a == again != b
    assert embed("a")[1] == (a,)
    assert embed("a", user="u", priority=3)[1] == (a,)
    assert embed([97])[1] != (a,)
    # The very bytes of a text, as an id.
    assert embed([int.from_bytes(b"abcd", "little")])[1] != embed("abcd")[1]


@pytest.mark.parametrize(
    "options", [{"dimensions": 64}, {"encoding_format": "base64"}, {"model": "n"}]
)
def test_another_call_for_the_same_text_is_another_key(options: dict[str, Any]) -> None:
    assert embed("a", **options)[1] != embed("a")[1]


def test_the_order_of_options_does_not_matter() -> None:
    assert embed("a", x=1, y=2)[1] == embed("a", y=2, x=1)[1]


def test_documents_are_read_with_the_query() -> None:
    def rerank(query: str, **fields: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return measure_inputs("rerank", {"model": "m", "query": query, **fields}, 100)

    tokens, keys = rerank("q" * 20, documents=["d" * 20, "e" * 60])
    assert tokens == (40, 80)
    assert rerank("q" * 20, documents=[{"text": "d" * 20}, {"text": "e" * 60}]) == (tokens, keys)
    assert rerank("q" * 20, texts=["d" * 20, "e" * 60]) == (tokens, keys)
    assert rerank("p" * 20, documents=["d" * 20, "e" * 60])[1] != keys
    assert rerank("q", documents=[{"image": "x"}]) == ((), ())
    assert rerank("q") == ((), ())


def test_a_call_of_very_many_inputs_gets_no_keys() -> None:
    many = ["x"] * (MAX_KEYED_INPUTS + 1)
    tokens, keys = embed(many, 10_000)
    assert (len(tokens), keys) == (len(many), ())
    assert len(embed(many[:-1], 10_000)[1]) == MAX_KEYED_INPUTS


@pytest.mark.parametrize(
    "value", [None, [], {}, 3, [{"text": "a"}], ["a", 1], [[1], "a"], [[-1]], [None], [1.5]]
)
def test_unknown_shapes_are_left_whole(value: Any) -> None:
    assert embed(value) == ((), ())


def test_options_nested_too_deeply() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert embed("a", odd=deep) == ((100,), ())
    assert merge_key("embedding", {"model": "m", "input": "a", "odd": deep}, (100,)) is None


def key(value: Any, **fields: Any) -> int | None:
    tokens, _ = embed(value, **fields)
    return merge_key("embedding", {"model": "m", "input": value, **fields}, tokens)


def test_calls_alike_in_all_but_their_inputs_may_be_merged() -> None:
    assert key("a") == key(["b", "c"]) is not None
    assert key([1, 2]) == key([[3], [4, 5]]) is not None
    assert key("a", dimensions=4, user="u") == key("b", user="u", dimensions=4)


def test_unlike_calls_may_not() -> None:
    kinds = [
        key("a"),
        key([1]),
        key("a", dimensions=4),
        key("a", dimensions=5),
        key("a", encoding_format="base64"),
        key("a", encoding_format="float"),  # what an engine does without it is not known
        key("a", user="one"),
        key("a", user="other"),
        key("a", truncate_prompt_tokens=8),
        key("a", input_type="query"),
        key("a", priority=3),
        key("a", anything={"nested": [1, 2]}),
    ]
    assert None not in kinds
    assert len(set(kinds)) == len(kinds)


def test_what_goes_whole_has_no_merge_key() -> None:
    assert merge_key("rerank", {"model": "m", "query": "q", "documents": ["d"]}, (3,)) is None
    assert key([{"text": "a"}]) is None
    assert key(["x"] * MAX_KEYED_INPUTS) is not None
    assert key(["x"] * (MAX_KEYED_INPUTS + 1)) is None


@given(JSON, JSON, st.sampled_from(["embedding", "rerank"]), st.integers(0, 10**6))
def test_any_json_is_taken(value: Any, option: Any, kind: Any, body_tokens: int) -> None:
    body = {"model": "m", "input": value, "documents": value, "query": option, "option": option}
    tokens, keys = measure_inputs(kind, body, body_tokens)
    assert all(t >= 1 for t in tokens)
    assert all(0 <= k < 1 << 64 for k in keys)
    assert len(keys) in (0, len(tokens))
    form = merge_key(kind, body, tokens)
    assert form is None or (kind == "embedding" and tokens and 0 <= form < 1 << 64)
