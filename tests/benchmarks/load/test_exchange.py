"""Answers turned into records, without a network."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sage_bench.load import record as outcome
from sage_bench.load.exchange import Exchange
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import Kind, LoadRequest

EVENTS = {b"content-type": b"text/event-stream; charset=utf-8"}
JSON = {b"content-type": b"application/json"}


def exchange(
    kind: Kind = "chat", *, stream: bool = True, inputs: int = 0, abandon_after: int | None = None
) -> Exchange:
    request = LoadRequest(kind, b"{}", stream, inputs=inputs, abandon_after=abandon_after)
    record = RequestRecord(0, "load-0", kind, stream, "", "", 0, scheduled_s=1.0, started_s=1.001)
    made = Exchange(request, record)
    made.sent(1.002)
    return made


def event(**content: Any) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def text(piece: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": finish}])


def test_a_stream_is_timed_from_the_scheduled_time() -> None:
    made = exchange()
    made.head(200, EVENTS | {b"x-sage-engine": b"a", b"x-sage-queue-ms": b"12.5"})
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    assert not made.body(role, 1.4)
    assert not made.body(text("x"), 1.5)
    assert not made.body(text("y") + text("z"), 1.9)
    assert not made.body(text("w", "length"), 2.0)
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "prompt_tokens_details": None}
    made.body(event(choices=[], usage=usage), 2.0)
    made.body(b"data: [DONE]\n\n", 2.1)
    made.end(2.2)
    record = made.record
    assert record.ok
    assert record.ttft_s == pytest.approx(0.5)
    assert record.first_byte_s == 1.4
    assert record.max_gap_s == pytest.approx(0.4)
    assert record.tpot_s == pytest.approx((2.0 - 1.5) / 5)
    assert record.e2e_s == pytest.approx(1.2)
    assert (record.chunks, record.finish_reason) == (4, "length")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (9, 6, None)
    assert (record.engine, record.queue_ms) == ("a", 12.5)


def test_reasoning_and_tool_calls_are_tokens_too() -> None:
    made = exchange()
    made.head(200, EVENTS)
    for delta in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, {"tool_calls": [{}]}):
        made.body(event(choices=[{"delta": delta}]), 1.5)
    made.body(event(choices=[{"text": "old"}]), 1.5)
    assert made.record.chunks == 4


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (text("x"), outcome.INCOMPLETE),
        (text("x", "stop"), outcome.INCOMPLETE),
        (text("x") + b"data: [DONE]\n\n", outcome.INCOMPLETE),
        (text("x", "stop") + b"data: [DONE]\n\ndata: {", outcome.INCOMPLETE),
        (text("x") + event(error={"message": "died"}), outcome.ERROR_EVENT),
        (b"data: {half\n\n", outcome.GARBAGE),
        (b"data: 7\n\n", outcome.GARBAGE),
        (b'data: {"choices": [7]}\n\n', outcome.GARBAGE),
        (b'data: {"choices": {}}\n\n', outcome.GARBAGE),
    ],
)
def test_a_stream_that_is_not_a_whole_answer(body: bytes, error: str) -> None:
    made = exchange()
    made.head(200, EVENTS)
    closes = made.body(body, 1.5)
    assert closes is (error in (outcome.ERROR_EVENT, outcome.GARBAGE))
    made.end(1.6)
    made.end(1.7)
    assert made.closed
    assert made.record.error == error
    assert made.record.e2e_s is None
    assert made.record.tpot_s is None
    assert made.record.finished_s == (1.5 if closes else 1.6)


def test_the_client_leaves_as_planned() -> None:
    made = exchange(abandon_after=2)
    made.head(200, EVENTS)
    assert not made.body(text("x"), 1.5)
    assert made.body(text("y") + text("z"), 1.6)
    assert (made.record.error, made.record.chunks) == (outcome.ABANDONED, 2)


@pytest.mark.parametrize(
    ("kind", "body", "error", "items"),
    [
        ("chat", b'{"choices": [{"finish_reason": "stop"}]}', outcome.OK, 1),
        ("embedding", b'{"data": [{}, {}], "usage": {"prompt_tokens": 5}}', outcome.OK, 2),
        ("embedding", b'{"data": [{}]}', outcome.INCOMPLETE, 1),
        ("embedding", b'{"choices": []}', outcome.GARBAGE, 0),
        ("chat", b'{"choices": ', outcome.GARBAGE, 0),
        ("chat", b"[]", outcome.GARBAGE, 0),
    ],
)
def test_whole_bodies(kind: Kind, body: bytes, error: str, items: int) -> None:
    made = exchange(kind, stream=False, inputs=2 if kind == "embedding" else 0)
    made.head(200, JSON)
    made.body(body[:5], 1.5)
    made.body(body[5:], 1.6)
    made.end(1.7)
    assert (made.record.error, made.record.items) == (error, items)
    assert made.record.answer_bytes == len(body)
    assert made.record.ttft_s is None


def test_statuses_keep_retry_after_and_the_servers_words() -> None:
    made = exchange()
    made.head(429, JSON | {b"retry-after": b"3"})
    made.body(b'{"error": {"message": "full"}}', 1.5)
    made.end(1.5)
    assert (made.record.error, made.record.status) == (outcome.STATUS, 429)
    assert made.record.retry_after_s == 3
    assert "full" in made.record.detail


def test_a_date_in_retry_after_is_no_number() -> None:
    made = exchange()
    made.head(503, JSON | {b"retry-after": b"Wed, 21 Oct 2026 07:28:00 GMT"})
    assert made.record.retry_after_s is None


def test_json_where_a_stream_was_asked_for() -> None:
    made = exchange()
    made.head(200, JSON)
    made.body(b'{"choices": [{}]}', 1.5)
    made.end(1.5)
    assert made.record.error == outcome.GARBAGE


def test_lost_connections() -> None:
    before, amid = exchange(), exchange()
    before.lost("gone", 2.0)
    amid.head(200, EVENTS)
    amid.lost("gone", 2.0)
    assert before.record.error == outcome.RESET
    assert amid.record.error == outcome.TRUNCATED
