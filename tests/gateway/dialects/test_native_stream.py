"""Streams of engines that speak Messages or Responses themselves."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.dialects.native_stream import NativeMessages, NativeResponses, NativeStream


def event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


MESSAGES = [
    event("message_start", message={"usage": {"input_tokens": 7, "cache_read_input_tokens": 4}}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "message_stop"}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    event("message_stop"),
]
RESPONSES = [
    event("response.created", sequence_number=0, response={"id": "resp_1", "output": []}),
    event("response.output_text.delta", sequence_number=1, delta="response.completed"),
    event(
        "response.completed",
        sequence_number=2,
        response={"id": "resp_1", "usage": {"input_tokens": 11, "output_tokens": 5}},
    ),
]


def check(relay: NativeStream, data: bytes, cut: int) -> None:
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    assert b"".join(map(relay.feed, pieces)) + relay.rest() == data
    assert relay.done
    assert relay.complete
    assert (relay.usage.prompt_tokens, relay.usage.output_tokens) == (11, 5)


@given(st.integers(1, 200))
def test_bytes_pass_and_counts_are_read(cut: int) -> None:
    check(NativeMessages(), b"".join(MESSAGES), cut)
    check(NativeResponses(), b"".join(RESPONSES), cut)


def test_an_event_leaves_when_it_is_whole() -> None:
    relay = NativeMessages()
    assert relay.feed(MESSAGES[0] + MESSAGES[1][:9]) == MESSAGES[0]
    assert relay.feed(MESSAGES[1][9:]) == MESSAGES[1]


def test_without_its_last_event_a_stream_is_not_complete() -> None:
    messages, responses = NativeMessages(), NativeResponses()
    messages.feed(b"".join(MESSAGES[:-1]))
    responses.feed(b"".join(RESPONSES[:-1]))
    assert not messages.complete
    assert not responses.complete
    assert messages.broken_off(503, "why") == event(
        "error", error={"type": "overloaded_error", "message": "why"}
    )
    failed = orjson.loads(responses.broken_off(502, "why").split(b"data: ")[1])
    assert failed == {
        "type": "response.failed",
        "sequence_number": 2,
        "response": {
            "id": "resp_1",
            "output": [],
            "status": "failed",
            "error": {"code": "server_error", "message": "why"},
        },
    }


def test_what_is_held_back_of_a_broken_event_never_leaves() -> None:
    relay = NativeMessages()
    assert relay.feed(MESSAGES[2][:-5]) == b""
    assert relay.broken_off(502, "why").startswith(b"event: error\n")


def test_an_endless_event_passes_in_pieces() -> None:
    relay = NativeResponses()
    big = b"data: " + b"x" * (1 << 20)
    assert relay.feed(big) == big
    assert relay.broken_off(502, "why").startswith(b"\n\nevent: response.failed\n")
