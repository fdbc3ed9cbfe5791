"""From a body in OpenAI's shape to a call of the litellm library, and its errors back.

What a client sends may choose what is asked, never where, with which key, or what else the library
does: only fields of the API reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.errors import HttpError

_COMMON = frozenset({"model", "user", "metadata", "service_tier", "store"})
_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "max_tokens"),
        *("max_completion_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("logit_bias", "logprobs", "top_logprobs", "stream", "stream_options"),
    }
)
FIELDS: Mapping[str, frozenset[str]] = {
    "chat": _COMMON
    | _SAMPLING
    | {
        *("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "reasoning_effort", "thinking", "modalities", "audio", "prediction"),
        *("verbosity", "web_search_options", "safety_settings"),
    },
    "completions": _COMMON | _SAMPLING | {"prompt", "suffix", "echo", "best_of"},
    "embeddings": _COMMON | {"input", "dimensions", "encoding_format"},
}
"""What each route hands on."""
# The library takes `metadata` for itself; a client's says nothing to an engine.
_LEFT_OUT = frozenset({"metadata"})


def arguments_of(
    route: str, body: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of the library's function.

    Args:
        route: a key of :data:`FIELDS`.
        settings: ``litellm_params`` of the deployment; they stand above the body.

    Raises:
        HttpError: 400, a field that is not handed on.
    """
    unknown = sorted(set(body) - FIELDS[route])
    if unknown:
        raise HttpError(
            400,
            f"The field {unknown[0]!r} is not handed on to this model's provider.",
            code="unsupported_field",
            param=unknown[0],
        )
    asked = {
        key: value for key, value in body.items() if value is not None and key not in _LEFT_OUT
    }
    # The gateway retries, on other engines too; twice would be too often.
    return {**asked, **settings, "max_retries": 0, "num_retries": 0}


def error_of(error: Exception) -> HttpError:
    """What went wrong at the provider, in OpenAI's shape."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 500
    name = type(error).__name__
    codes = {
        "ContextWindowExceededError": "context_length_exceeded",
        "ContentPolicyViolationError": "content_policy_violation",
        "UnsupportedParamsError": "unsupported_field",
    }
    code = codes.get(name, "provider_error")
    message = str(getattr(error, "message", "") or error)[:2000]
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    retry_after = headers.get("retry-after")
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(retry_after, str) and retry_after.isascii() and retry_after.isdigit():
        extra = ((b"retry-after", retry_after.encode()),)
    return HttpError(status, message, code=code, headers=extra)


def as_json(answer: Any) -> bytes:
    """An answer or a piece of a stream, as the library's object gives it."""
    if hasattr(answer, "model_dump"):
        return orjson.dumps(answer.model_dump(mode="json", exclude_none=True))
    return orjson.dumps(answer)
