"""What reaches the litellm library of a client's body, and what comes back of its errors."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sage_gateway.errors import HttpError
from sage_gateway.providers.calls import FIELDS, arguments_of, as_json, error_of

SETTINGS = {"api_base": "https://theirs", "api_key": "sk-theirs", "temperature": 0.5}


def test_settings_stand_above_the_body() -> None:
    body = {"model": "anthropic/x", "messages": [1], "temperature": 2, "n": None, "metadata": {}}
    assert arguments_of("chat", body, SETTINGS) == {
        "model": "anthropic/x",
        "messages": [1],
        **SETTINGS,
        "max_retries": 0,
        "num_retries": 0,
    }


@given(
    name=st.sampled_from(
        ["api_base", "base_url", "api_key", "custom_llm_provider", "fallbacks", "mock_response"]
    )
    | st.text(max_size=20),
    route=st.sampled_from(sorted(FIELDS)),
)
def test_only_fields_of_the_api_are_handed_on(name: str, route: str) -> None:
    body = {"model": "m", name: "http://elsewhere"}
    if name in FIELDS[route]:
        assert arguments_of(route, body, SETTINGS)["api_key"] == "sk-theirs"
        return
    with pytest.raises(HttpError) as caught:
        arguments_of(route, body, SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, name)


class ContextWindowExceededError(Exception):
    status_code = 400
    message = "too long"


class RateLimitError(Exception):
    status_code = 429

    class response:  # noqa: N801 - the library's attribute
        headers = {"retry-after": "7"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextWindowExceededError(), 400, "context_length_exceeded"),
        (RateLimitError("slow"), 429, "provider_error"),
        (ValueError("odd"), 500, "provider_error"),
    ],
)
def test_errors(error: Exception, status: int, code: str) -> None:
    shown = error_of(error)
    assert (shown.status, shown.code) == (status, code)


def test_the_time_to_wait_is_told() -> None:
    assert error_of(RateLimitError("slow")).headers == ((b"retry-after", b"7"),)


def test_answers() -> None:
    class Answer:
        def model_dump(self, **wanted: Any) -> dict[str, Any]:
            assert wanted == {"mode": "json", "exclude_none": True}
            return {"id": "x"}

    assert as_json(Answer()) == b'{"id":"x"}'
    assert as_json({"a": 1}) == b'{"a":1}'
