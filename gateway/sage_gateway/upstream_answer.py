"""Reading an engine's error answer, whatever shape it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from sage_gateway.errors import error_body

_RETRYABLE = frozenset({429, 500, 502, 503, 504})
_OVERLOADED = frozenset({429, 503})
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class WrappedError:
    """An engine's error in OpenAI's shape."""

    body: bytes
    message: str
    code: str | None
    param: str | None


def retryable_status(status: int) -> bool:
    """Whether another engine may do better with the same request."""
    return status in _RETRYABLE


def says_overloaded(status: int) -> bool:
    """Whether the engine has no room at present."""
    return status in _OVERLOADED


def wrapped_error(engine: str, status: int, answer: bytes) -> WrappedError:
    """The engine's error: as it is when it has OpenAI's shape, else put into it.

    Understands ``{"error": {...}}``, ``{"error": "..."}``, ``{"message": ...}``, FastAPI's
    ``{"detail": ...}`` and plain text.
    """
    try:
        content = orjson.loads(answer)
    except orjson.JSONDecodeError:
        content = None
    if isinstance(content, dict):
        error = content.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return WrappedError(
                answer, error["message"], _text(error.get("code")), _text(error.get("param"))
            )
        message = _first_text(error, content.get("message"), content.get("detail"))
    else:
        message = answer[:_SHOWN].decode("utf-8", "replace").strip() if _is_plain(answer) else None
    shown = f"Engine {engine!r} answered with status {status}" + (
        f": {message[:_SHOWN]}" if message else "."
    )
    code = "engine_error" if status >= 500 else "engine_rejected"
    return WrappedError(error_body(status, shown, code=code), shown, code, None)


def _first_text(*values: Any) -> str | None:
    for value in values:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:
            return orjson.dumps(value)[:_SHOWN].decode("utf-8", "replace")
    return None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) else None


def _is_plain(answer: bytes) -> bool:
    return bool(answer.strip()) and b"\0" not in answer[:_SHOWN]
