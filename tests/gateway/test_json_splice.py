from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.json_splice import splice, value_spans

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["model", "stream_options", "a", 'q"uote', "back\\slash", "é", ""])
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)


@given(OBJECTS, OBJECTS, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_splice_sets_and_keeps(
    before: dict[str, Any], changes: dict[str, Any], indent: Any, ascii_only: bool
) -> None:
    body = json.dumps(before, indent=indent, ensure_ascii=ascii_only).encode()
    after = splice(body, before, changes)
    assert orjson.loads(after) == {**before, **changes}


@given(OBJECTS)
def test_spans_hold_the_values(content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    for key, places in value_spans(body, set(content)).items():
        for start, end in places:
            assert orjson.loads(body[start:end]) == content[key]


def test_untouched_bytes_stay() -> None:
    body = b'{ "n": 1.50e+00,\t"model":"a" , "x": {"model": "b"}, "y": ["model"] }'
    assert splice(body, orjson.loads(body), {"model": "c"}) == body.replace(b'"a"', b'"c"')


def test_a_repeated_key_is_replaced_everywhere() -> None:
    body = b'{"model":"a","model":"b"}'
    assert splice(body, orjson.loads(body), {"model": "c"}) == b'{"model":"c","model":"c"}'


def test_a_key_with_escapes() -> None:
    body = b'{"mod\\u0065l":"a"}'
    assert orjson.loads(splice(body, orjson.loads(body), {"model": "c"})) == {"model": "c"}


@pytest.mark.parametrize("body", [b"{}", b" \n{ } "])
def test_into_an_empty_object(body: bytes) -> None:
    assert orjson.loads(splice(body, {}, {"a": [1]})) == {"a": [1]}


@given(OBJECTS, OBJECTS, KEYS, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_splice_takes_out_one_field(
    before: dict[str, Any], changes: dict[str, Any], drop: str, indent: Any, ascii_only: bool
) -> None:
    changes.pop(drop, None)
    body = json.dumps(before, indent=indent, ensure_ascii=ascii_only).encode()
    after = splice(body, before, changes, drop)
    assert orjson.loads(after) == {k: v for k, v in {**before, **changes}.items() if k != drop}


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"p": 5, "model":"a"}', b'{"model":"a"}'),
        (b'{"model":"a" , "p":-5}', b'{"model":"a" }'),
        (b'{"a":1,"p":{"p":[1,"]"]},"b":1.50}', b'{"a":1,"b":1.50}'),
        (b'{ "p" : "x, y" }', b"{  }"),
        (b'{"x":{"p":1},"y":"p"}', b'{"x":{"p":1},"y":"p"}'),
        (b'{"p":1,"a":2,"p":3}', b'{"a":2}'),
    ],
)
def test_all_but_the_field_stays(body: bytes, after: bytes) -> None:
    assert splice(body, orjson.loads(body), {}, "p") == after
