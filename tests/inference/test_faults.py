"""Statuses, error bodies and headers become the errors of SAGE."""

from __future__ import annotations

import httpx
import pytest

from sage_prefect.common.errors import (
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    RequestRejected,
    is_retryable,
)
from sage_prefect.inference import faults

URL = "http://127.0.0.1:1/v1/chat/completions"


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, RequestRejected, False),
        (401, RequestRejected, False),
        (404, RequestRejected, False),
        (408, EngineTimeout, True),
        (413, RequestRejected, False),
        (429, EngineOverloaded, True),
        (500, EngineUnavailable, True),
        (501, RequestRejected, False),
        (502, EngineUnavailable, True),
        (503, EngineUnavailable, True),
        (504, EngineTimeout, True),
    ],
)
def test_status(status: int, kind: type[EngineError], retryable: bool) -> None:
    error = faults.from_status(status, b'{"error": {"message": "because", "code": "c"}}', {}, URL)
    assert type(error) is kind
    assert is_retryable(error) is retryable
    assert f"{URL} answered {status}: because" in str(error)
    if isinstance(error, RequestRejected):
        assert (error.status, error.code) == (status, "c")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no message"),
        (b"<html>oops</html>", "<html>oops</html>"),
        (b'{"error": "plain", "error_type": "overloaded"}', "plain"),
        (b'{"message": "bare", "code": 404}', "bare"),
        (b"[1]", "[1]"),
        (b"\xff\xfe", "\ufffd"),
    ],
)
def test_any_body_gives_a_message(content: bytes, text: str) -> None:
    assert text in faults.from_status(400, content, {}, URL).message


def test_long_bodies_are_cut() -> None:
    assert len(faults.from_status(400, b"x" * 10_000, {}, URL).message) < 700


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ('{"error": {"message": "m", "code": 503}}', EngineUnavailable),
        ('{"error": {"message": "m", "code": "429"}}', EngineOverloaded),
        ('{"error": {"message": "m", "type": "rate_limit_error"}}', EngineOverloaded),
        ('{"error": {"message": "m", "type": "timeout_error"}}', EngineTimeout),
        ('{"error": {"message": "m", "type": "invalid_request_error"}}', RequestRejected),
        ('{"error": {"message": "m", "type": "engine_error"}}', EngineUnavailable),
        ('{"error": "m"}', EngineUnavailable),
    ],
)
def test_error_events(data: str, kind: type[EngineError]) -> None:
    assert type(faults.from_event(data, URL)) is kind


@pytest.mark.parametrize(
    "data",
    [
        '{"choices": [{"delta": {"content": "the \\"error\\" word"}}]}',
        '{"choices": [], "error": null}',
    ],
)
def test_no_error_event(data: str) -> None:
    assert faults.from_event(data, URL) is None


def test_retry_after() -> None:
    assert faults.retry_after_s({}) is None
    assert faults.retry_after_s({"retry-after": "7"}) == 7.0
    assert faults.retry_after_s({"retry-after": "7", "retry-after-ms": "250"}) == 0.25
    assert faults.retry_after_s({"retry-after": "-3"}) == 0.0
    assert faults.retry_after_s({"retry-after": "soon"}) is None
    date = "Sat, 21 Nov 2026 08:00:10 GMT"
    assert faults.retry_after_s({"retry-after": date}, now=1795248000.0) == 10.0


def test_transport() -> None:
    refused = faults.from_transport(httpx.ConnectError("refused"), URL, 0.1)
    assert isinstance(refused, EngineUnavailable)
    assert "sage up" in str(refused)
    slow = faults.from_transport(httpx.ReadTimeout(""), URL, 3.0)
    assert isinstance(slow, EngineTimeout)
    assert "did not answer within 3.0 s" in str(slow)
    assert isinstance(faults.from_transport(httpx.InvalidURL("x"), URL, 0.0), RequestRejected)
