from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.prompt_length import ATTACHMENT_TOKENS, prompt_length

JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "text"}, 100),
        ({"prompt": [5, 6, 7]}, 3),
        ({"prompt": [[5, 6, 7], [8]]}, 4),
        ({"prompt": ["two", "texts"]}, 100),
        ({"prompt": []}, 100),
    ],
)
def test_ids_are_counted_and_bytes_divided(body: dict[str, Any], tokens: int) -> None:
    assert prompt_length(body, 400, 4.0) == tokens


def test_a_picture_is_not_text() -> None:
    picture = "data:image/png;base64," + "A" * 1_000_000
    text = {"type": "text", "text": "x" * 30_000}
    body = {
        "messages": [
            {"role": "system", "content": "Look."},
            {
                "role": "user",
                "content": [text, {"type": "image_url", "image_url": {"url": picture}}],
            },
        ]
    }
    tokens = prompt_length(body, 30_100 + len(picture), 4.0)
    assert 7500 + ATTACHMENT_TOKENS <= tokens <= 7600 + ATTACHMENT_TOKENS


@given(JSON, JSON, st.integers(0, 10**7))
def test_any_json_is_taken(messages: Any, prompt: Any, body_bytes: int) -> None:
    assert prompt_length({"messages": messages, "prompt": prompt}, body_bytes, 4.0) >= 0
