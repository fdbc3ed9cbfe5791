"""Bodies in, bodies out."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.platform.embedding_server.request import (
    EmbeddingRequest,
    HttpError,
    Limits,
    parse_request,
)
from sage_prefect.platform.embedding_server.response import embeddings_body, models_body

LIMITS = Limits(max_inputs=3, max_input_characters=10)


def parse(body: bytes) -> EmbeddingRequest:
    return parse_request(body, models=("m", "alias"), dimension=4, limits=LIMITS)


def refused(**fields: Any) -> HttpError:
    body = orjson.dumps({"model": "m", "input": "a"} | fields)
    with pytest.raises(HttpError) as caught:
        parse(body)
    return caught.value


def test_a_string_and_a_list() -> None:
    assert parse(b'{"model": "m", "input": "a"}') == EmbeddingRequest("m", ["a"], "float")
    body = b'{"model": "alias", "input": ["a", ""], "encoding_format": "base64"}'
    assert parse(body) == EmbeddingRequest("alias", ["a", ""], "base64")


def test_null_counts_as_absent_and_unknown_fields_are_ignored() -> None:
    body = {"model": "m", "input": "", "encoding_format": None, "dimensions": None, "user": "u"}
    assert parse(orjson.dumps(body)) == EmbeddingRequest("m", [""], "float")
    assert parse(orjson.dumps(body | {"dimensions": 4})).texts == [""]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": "m", "input": "\\ud800"}'])
def test_no_json(body: bytes) -> None:
    with pytest.raises(HttpError, match="not JSON") as caught:
        parse(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"'])
def test_no_object(body: bytes) -> None:
    with pytest.raises(HttpError, match="not an object"):
        parse(body)


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"model": None}, "model", "must be a string, got null"),
        ({"model": 1}, "model", "got a number"),
        ({"input": None}, "input", "got null"),
        ({"input": {}}, "input", "got an object"),
        ({"input": 3}, "input", "got a number"),
        ({"input": True}, "input", "got a boolean"),
        ({"input": []}, "input", "empty list"),
        ({"input": ["a", 1]}, "input", r"'input\[1\]' must be a string"),
        ({"input": [[1, 2]]}, "input", "Token ids are not supported"),
        ({"input": ["a"] * 4}, "input", "4 texts, more than 3"),
        ({"input": ["a", "x" * 11]}, "input", r"'input\[1\]' has 11 characters"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64', got 'int8'"),
        ({"encoding_format": ["x" * 500]}, "encoding_format", r"\.\.\."),
        ({"dimensions": 3}, "dimensions", "makes 4"),
        ({"dimensions": True}, "dimensions", "makes 4"),
        ({"dimensions": "4"}, "dimensions", "makes 4"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], param: str, text: str) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)
    with pytest.raises(HttpError, match=text):
        raise error
    body = orjson.loads(error.body())["error"]
    assert body["type"] == "invalid_request_error"
    assert body["param"] == param


def test_unknown_model_lists_the_known_ones() -> None:
    error = refused(model="x")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "Served: m, alias." in error.message


@given(st.binary(max_size=60) | st.from_regex(rb'\{"model": "m", "input": .{0,30}\}'))
def test_no_body_breaks_the_parser(body: bytes) -> None:
    with suppress(HttpError):  # anything else fails the test
        parse(body)


def test_answers() -> None:
    vectors = np.array([[0.1, -1e-8], [3.0, 1 / 3]], dtype=np.float32)
    floats = orjson.loads(embeddings_body(vectors, "float", 'a "model"', 7))
    assert floats["model"] == 'a "model"'
    assert floats["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in floats["data"]] == [0, 1]
    given_back = np.array([item["embedding"] for item in floats["data"]], dtype=np.float32)
    np.testing.assert_array_equal(given_back, vectors)  # every bit: shortest decimal of a float32
    encoded = orjson.loads(embeddings_body(vectors, "base64", "m", 7))
    for item, row in zip(encoded["data"], vectors, strict=True):
        np.testing.assert_array_equal(
            np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4"), row
        )


def test_models() -> None:
    (model,) = orjson.loads(models_body(("m",), 5, 256, 384))["data"]
    assert model["id"] == "m"
    assert (model["max_model_len"], model["embedding_dimension"]) == (256, 384)
