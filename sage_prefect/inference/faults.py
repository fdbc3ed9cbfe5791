"""From what went wrong on the wire to the errors of SAGE. Pure.

What a caller does with them: :class:`EngineUnavailable` and :class:`EngineTimeout` may pass by
themselves (a flow's retry handles them), :class:`EngineOverloaded` says when to come back,
:class:`RequestRejected` must be corrected by whoever made the request.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from sage_prefect.common.errors import (
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    RequestRejected,
)
from sage_prefect.inference.protocol import parse_number

_MAX_MESSAGE = 500


def from_status(status: int, content: bytes, headers: Mapping[str, str], url: str) -> EngineError:
    """The error for an answer whose status is not 200."""
    detail = _error_object(content)
    text = detail.get("message") or content.decode(errors="replace").strip() or "no message"
    message = f"{url} answered {status}: {str(text)[:_MAX_MESSAGE]}"
    code = detail.get("code")
    return _by_status(status, message, None if code is None else str(code), retry_after_s(headers))


def from_event(data: str, url: str) -> EngineError | None:
    """The error that a data frame of a stream carries, or None when it carries none.

    There is no standard for it: servers send ``{"error": {"message", "type", "code"}}`` with the
    code as a number or a word.
    """
    if '"error"' not in data:
        return None
    detail = _error_object(data.encode())
    if not detail:
        return None
    message = f"{url} broke off the answer: {str(detail.get('message') or data)[:_MAX_MESSAGE]}"
    for key in ("status", "code"):
        status = parse_number(str(detail.get(key)))
        if status is not None and 400 <= status < 600:
            return _by_status(int(status), message, None, None)
    words = f"{detail.get('type')} {detail.get('code')}".lower()
    if "overload" in words or "rate_limit" in words:
        return EngineOverloaded(message)
    if "timeout" in words:
        return EngineTimeout(message)
    if "invalid" in words or "not_found" in words or "authentication" in words:
        return RequestRejected(message, status=400, code=str(detail.get("code")))
    return EngineUnavailable(message)


def from_transport(
    error: httpx.HTTPError | httpx.InvalidURL, url: str, waited_s: float
) -> EngineError:
    """The error for a request that got no whole answer."""
    if isinstance(error, httpx.TimeoutException):
        phase = {
            httpx.ConnectTimeout: "accept the connection",
            httpx.WriteTimeout: "take the request",
            httpx.PoolTimeout: "free a connection",
        }.get(type(error), "answer")
        return EngineTimeout(
            f"{url} did not {phase} within {waited_s:.1f} s.",
            hint="Raise timeout_s (or SAGE_REQUEST_TIMEOUT), or look at the engine's load.",
        )
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return RequestRejected(
            f"{url} is not a URL that can be called: {error}.", status=0, code="invalid_url"
        )
    return EngineUnavailable(
        f"{url} cannot be reached: {error or type(error).__name__}.",
        hint="`sage status` shows what runs; `sage up` starts it.",
    )


def timed_out(url: str, limit_s: float) -> EngineTimeout:
    """The error for a call that ran out of its total time."""
    return EngineTimeout(
        f"{url} did not finish within {limit_s:g} s.",
        hint="Raise timeout_s (or SAGE_REQUEST_TIMEOUT), or ask for fewer tokens.",
    )


def cut_off(url: str) -> EngineUnavailable:
    """The error for a stream that ends before its answer does."""
    return EngineUnavailable(
        f"{url} ended the stream before the answer was finished: the engine died or was cut off.",
        hint="Repeat the request; the engine's log says why.",
    )


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the server asks to wait: ``retry-after-ms``, or ``retry-after`` in seconds or
    as a date; None without either."""
    milliseconds = parse_number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1e3)
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = parse_number(value)
    if seconds is None:
        try:
            moment = email.utils.parsedate_to_datetime(value).timestamp()
        except ValueError:
            return None
        seconds = moment - (time.time() if now is None else now)
    return max(0.0, seconds)


def _by_status(
    status: int, message: str, code: str | None, retry_after: float | None
) -> EngineError:
    if status == 429:
        return EngineOverloaded(message, retry_after=retry_after)
    if status in (408, 504):
        return EngineTimeout(message)
    if status >= 500 and status != 501:
        return EngineUnavailable(message, hint="The engine's log says more; `sage status`.")
    hint = None
    if status == 401:
        hint = "Set SAGE_API_KEY, or pass api_key=."
    elif status == 404:
        hint = "`sage models list` and GET /v1/models show the names."
    return RequestRejected(message, status=status, code=code, hint=hint)


def _error_object(content: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body if "message" in body else None)
    if isinstance(error, str):
        return {"message": error, "type": body.get("error_type"), "code": body.get("code")}
    return error if isinstance(error, dict) else {}
