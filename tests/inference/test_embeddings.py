"""Splitting embedding calls and reading their answers."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import EngineUnavailable
from sage_prefect.inference.embeddings import (
    check_texts,
    embedding_body,
    join,
    parse_embeddings,
    split,
)


@given(st.lists(st.text(max_size=20), max_size=40), st.integers(1, 8), st.integers(1, 50))
def test_parts_cover_the_texts_in_order_within_the_bounds(
    texts: list[str], max_texts: int, max_characters: int
) -> None:
    parts = list(split(texts, max_texts, max_characters))
    assert [text for part in parts for text in texts[part]] == texts
    for part in parts:
        size = part.stop - part.start
        assert 1 <= size <= max_texts
        assert size == 1 or sum(map(len, texts[part])) <= max_characters


def test_body_asks_for_base64() -> None:
    body = orjson.loads(embedding_body(["a"], "m", dimensions=None, user="u"))
    assert body == {"model": "m", "input": ["a"], "encoding_format": "base64", "user": "u"}


def answer(*items: tuple[int, object]) -> bytes:
    return orjson.dumps({"data": [{"index": index, "embedding": value} for index, value in items]})


def as_base64(*values: float) -> str:
    return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()


def test_base64_and_numbers_in_any_order() -> None:
    content = answer((1, as_base64(3, 4)), (0, [1.0, 2.0]))
    vectors = parse_embeddings(content, 2)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"data": [1, 2]}',
        answer((0, [1.0])),
        answer((0, [1.0]), (0, [1.0])),
        answer((0, [1.0]), (2, [1.0])),
        answer((0, [1.0]), (-1, [1.0])),
        answer((0, [1.0]), (1, [1.0, 2.0])),
        answer((0, [1.0]), (1, None)),
        answer((0, "!!!"), (1, "abc")),
        answer((0, [[1.0]]), (1, [[1.0]])),
    ],
)
def test_what_is_no_list_of_two_embeddings(content: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="list of 2 embeddings"):
        parse_embeddings(content, 2)


def test_join() -> None:
    assert join([]).shape == (0, 0)
    assert join([]).dtype == np.float32
    one = np.ones((2, 3), dtype=np.float32)
    assert join([one, one]).shape == (4, 3)
    with pytest.raises(EngineUnavailable, match=r"dimensions \[2, 3\]"):
        join([one, np.ones((1, 2), dtype=np.float32)])


def test_texts_are_checked() -> None:
    assert check_texts(("a", "b")) == ["a", "b"]
    with pytest.raises(TypeError, match=r"write \[text\]"):
        check_texts("abc")
    with pytest.raises(TypeError, match="int at index 1"):
        check_texts(["a", 1])  # type: ignore[list-item]
