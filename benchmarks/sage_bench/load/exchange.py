"""One request's answer as it comes in, turned into its record. Pure: each call says when.

The connection below it knows HTTP, this knows the API: what is a token, a whole answer, an error.
"""

from __future__ import annotations

from typing import Any

import orjson

from sage_bench.load import record as outcome
from sage_bench.load.event_stream import EventStream, EventTooLong
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import LoadRequest

MAX_DETAIL = 200
MAX_ANSWER_BYTES = 256 << 20


class Exchange:
    """Fills one record. After :attr:`closed` every further call is ignored.

    Args:
        request: what is sent.
        record: to be filled.
    """

    __slots__ = ("_body", "_done", "_events", "closed", "head_seen", "record", "request")

    def __init__(self, request: LoadRequest, record: RequestRecord) -> None:
        self.request = request
        self.record = record
        self.closed = False
        self.head_seen = False
        self._events: EventStream | None = None
        self._body = bytearray()
        self._done = False

    def sent(self, now: float) -> None:
        """The request's bytes went to the socket."""
        self.record.sent_s = now

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers (lower-case names) have come."""
        record = self.record
        self.head_seen = True
        record.status = status
        record.engine = headers.get(b"x-sage-engine", b"").decode("latin-1")
        record.queue_ms = _number(headers.get(b"x-sage-queue-ms"))
        record.retry_after_s = _number(headers.get(b"retry-after"))
        is_events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if is_events and status < 300:
            self._events = EventStream()

    def body(self, data: bytes, now: float) -> bool:
        """Bytes of the body have come. True: the connection must be closed (see ``closed``)."""
        if self.closed:
            return False
        record = self.record
        if record.first_byte_s is None:
            record.first_byte_s = now
        record.answer_bytes += len(data)
        if self._events is None:
            self._body += data
            if len(self._body) > MAX_ANSWER_BYTES:
                self.fail(outcome.GARBAGE, f"more than {MAX_ANSWER_BYTES} bytes", now)
                return True
            return False
        try:
            payloads = self._events.feed(data)
        except EventTooLong as error:
            self.fail(outcome.GARBAGE, str(error), now)
            return True
        return any(self._event(payload, now) for payload in payloads)

    def end(self, now: float) -> None:
        """The answer is complete as far as HTTP can tell."""
        if self.closed:
            return
        if self.record.status >= 300:
            self.fail(outcome.STATUS, _text(bytes(self._body)), now)
        elif self._events is not None:
            self._end_of_stream(self._events, now)
        elif self.request.stream:
            self.fail(outcome.GARBAGE, f"no stream: {_text(bytes(self._body))}", now)
        else:
            self._whole_body(now)

    def lost(self, detail: str, now: float) -> None:
        """The connection is gone and the answer has not ended."""
        self.fail(outcome.TRUNCATED if self.head_seen else outcome.RESET, detail, now)

    def fail(self, error: str, detail: str, now: float) -> None:
        """Close the record with an error."""
        if not self.closed:
            self.record.error = error
            self.record.detail = detail[:MAX_DETAIL]
            self._close(now)

    # -- inside ---------------------------------------------------------------------------

    def _event(self, payload: bytes, now: float) -> bool:
        """Take one event; True when it closed the record."""
        if payload == b"[DONE]":
            self._done = True
            return False
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            event = None
        choices = event.get("choices", []) if isinstance(event, dict) else None
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            self.fail(outcome.GARBAGE, f"an event that is no chunk: {_text(payload)}", now)
            return True
        if "error" in event:
            self.fail(outcome.ERROR_EVENT, _text(payload), now)
            return True
        self._usage(event.get("usage"))
        for choice in choices:
            if choice.get("finish_reason"):
                self.record.finish_reason = str(choice["finish_reason"])
            if _carries_text(choice):
                return self._token(now)
        return False

    def _token(self, now: float) -> bool:
        record = self.record
        record.chunks += 1
        if record.last_token_s is None:
            record.first_token_s = now
        else:
            record.max_gap_s = max(record.max_gap_s or 0.0, now - record.last_token_s)
        record.last_token_s = now
        if record.chunks == self.request.abandon_after:
            self.fail(outcome.ABANDONED, f"left after {record.chunks} events", now)
            return True
        return False

    def _end_of_stream(self, events: EventStream, now: float) -> None:
        if not self._done or events.mid_event:
            self.fail(outcome.INCOMPLETE, "the stream ended without [DONE]", now)
        elif not self.record.finish_reason:
            self.fail(outcome.INCOMPLETE, "the stream ended without a finish reason", now)
        else:
            self._close(now)

    def _whole_body(self, now: float) -> None:
        try:
            answer = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            self.fail(outcome.GARBAGE, f"not JSON: {_text(bytes(self._body))}", now)
            return
        key = "data" if self.request.kind == "embedding" else "choices"
        items = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(items, list):
            self.fail(outcome.GARBAGE, f"no {key!r} in {_text(bytes(self._body))}", now)
            return
        record = self.record
        record.items = len(items)
        self._usage(answer.get("usage"))
        if key == "choices" and items and isinstance(items[0], dict):
            record.finish_reason = str(items[0].get("finish_reason") or "")
        wanted = self.request.inputs
        if wanted and record.items != wanted:
            self.fail(outcome.INCOMPLETE, f"{record.items} vectors for {wanted} inputs", now)
        else:
            self._close(now)

    def _usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        record = self.record
        record.prompt_tokens = _count(usage.get("prompt_tokens"))
        record.output_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            record.cached_tokens = _count(details.get("cached_tokens"))

    def _close(self, now: float) -> None:
        self.record.finished_s = now
        self.closed = True
        self._body = bytearray()


def _carries_text(choice: dict[str, Any]) -> bool:
    """Whether a choice of an event holds output: text, reasoning, or a piece of a tool call."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and bool(
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("tool_calls")
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return None  # Retry-After may be a date


def _text(data: bytes) -> str:
    return data[:MAX_DETAIL].decode("utf-8", "replace").strip()
