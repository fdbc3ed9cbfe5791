"""Chat answers and streams as Anthropic's."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.dialects.base import MalformedAnswer, UnusableAnswer
from sage_gateway.dialects.messages import MessagesDialect
from sage_gateway.dialects.messages_answer import error_object, whole_message
from sage_gateway.dialects.messages_stream import MessagesStream
from sage_gateway.errors import HttpError
from sage_gateway.upstream_answer import wrapped_error


def test_a_text(talk: Any) -> None:
    answer = talk.answer(
        {"content": "Hello"},
        usage={
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    )
    assert orjson.loads(whole_message(answer, "alias", talk.stamp)) == {
        "id": "msg_t1",
        "type": "message",
        "role": "assistant",
        "model": "alias",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 5,
        },
    }


def test_thoughts_and_calls(talk: Any) -> None:
    message = {
        "content": "I ask.",
        "reasoning_content": "Hm.",
        "tool_calls": [talk.call(0, "f", '{"a":1}'), talk.call(1, "g")],
    }
    told = orjson.loads(whole_message(talk.answer(message), "m", talk.stamp))
    assert told["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I ask."},
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_1", "name": "g", "input": {}},
    ]
    # A forced choice ends with "stop" in chat; what the client must do is to call.
    assert told["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "met", "reason", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "END", "stop_sequence", "END"),
        ("stop", 2, "end_turn", None),
        ("length", None, "max_tokens", None),
        ("content_filter", None, "refusal", None),
    ],
)
def test_why_it_ended(talk: Any, finish: str, met: Any, reason: str, sequence: Any) -> None:
    answer = talk.answer({"content": "x"}, finish, stop_reason=met)
    told = orjson.loads(whole_message(answer, "m", talk.stamp))
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, sequence)


def test_arguments_that_are_no_object(talk: Any) -> None:
    message = {"content": None, "tool_calls": [talk.call(0, "f", '{"a":')]}
    with pytest.raises(UnusableAnswer, match="no JSON object"):
        whole_message(talk.answer(message, "tool_calls"), "m", talk.stamp)
    cut = orjson.loads(whole_message(talk.answer(message, "length"), "m", talk.stamp))
    assert (cut["stop_reason"], cut["content"][0]["input"]) == ("max_tokens", {})


@pytest.mark.parametrize("answer", [b"nope", b"[]", b"{}", b'{"choices":[{"text":"x"}]}'])
def test_what_is_no_chat_answer(talk: Any, answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        whole_message(answer, "m", talk.stamp)


def test_the_order_of_a_streams_events(talk: Any) -> None:
    stream = MessagesStream("alias", talk.stamp)
    events = talk.run(
        stream,
        [
            talk.chunk({"role": "assistant", "content": ""}),
            talk.chunk({"reasoning_content": "Hm."}),
            talk.chunk({"content": "Hel"}),
            talk.chunk({"content": "lo"}),
            talk.chunk({"tool_calls": [talk.call(0, "f")]}),
            talk.chunk({"tool_calls": [talk.call(0, None, '{"a":1}')]}),
            talk.chunk({"tool_calls": [talk.call(1, "g", "{}")]}),
            talk.chunk(finish="tool_calls"),
            talk.counted(cached=4),
        ],
    )
    start, block, end = "content_block_start", "content_block_delta", "content_block_stop"
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        *((kind, 0) for kind in (start, block, end)),
        *((kind, 1) for kind in (start, block, block, end)),
        *((kind, 2) for kind in (start, block, end)),
        *((kind, 3) for kind in (start, block, end)),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"]["model"] == "alias"
    assert events[0]["message"]["content"] == []
    assert [e["content_block"]["type"] for e in events if e["type"] == start] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert [e["delta"]["type"] for e in events if e["type"] == block] == [
        "thinking_delta",
        "text_delta",
        "text_delta",
        "input_json_delta",
        "input_json_delta",
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }
    assert (stream.done, stream.complete) == (True, True)
    assert (stream.usage.prompt_tokens, stream.usage.cached_tokens) == (11, 4)


def test_a_stream_that_breaks_off_ends_with_the_error_event(talk: Any) -> None:
    stream = MessagesStream("m", talk.stamp)
    out = stream.feed(talk.chunk({"content": "Hel"})) + stream.rest()
    assert not stream.complete
    events = talk.events(out + stream.broken_off(502, "Engine 'e' went away."))
    assert [event["type"] for event in events[-2:]] == ["content_block_delta", "error"]
    assert events[-1]["error"] == {"type": "api_error", "message": "Engine 'e' went away."}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_in_anthropics_shape(status: int, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": "why"}}
    assert orjson.loads(error_object(status, "why")) == expected
    dialect = MessagesDialect()
    assert orjson.loads(dialect.error(HttpError(status, "why"))) == expected
    chat = wrapped_error("e", status, b'{"error":{"message":"why","type":"x"}}')
    assert orjson.loads(dialect.engine_error(status, chat)) == expected
    own = b'{"type":"error","error":{"type":"their_own","message":"why"}}'
    assert dialect.engine_error(status, wrapped_error("e", status, own)) == own


DELTAS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"content": st.text(min_size=1, max_size=5)}),
        st.fixed_dictionaries({"reasoning_content": st.text(min_size=1, max_size=5)}),
        st.just({}),
    ),
    max_size=8,
)


@given(deltas=DELTAS, cut=st.integers(1, 40))
def test_any_stream_in_any_pieces(talk_free: Any, deltas: Any, cut: int) -> None:
    """The events do not depend on how the bytes were cut; blocks neither nest nor overlap."""
    talk = talk_free
    data = b"".join(talk.chunk(delta) for delta in deltas) + talk.chunk(finish="stop")
    data += talk.counted()
    whole = talk.run(MessagesStream("m", talk.stamp), [data])
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    assert talk.run(MessagesStream("m", talk.stamp), pieces) == whole
    for kind, field in (("text", "content"), ("thinking", "reasoning_content")):
        told = [e["delta"][kind] for e in whole if kind in e.get("delta", {})]
        assert told == [delta[field] for delta in deltas if field in delta]
    block = None
    for event in whole:
        if event["type"] == "content_block_start":
            assert block is None
            block = event["index"]
        elif event["type"] == "content_block_delta":
            assert block == event["index"]
        elif event["type"] == "content_block_stop":
            assert block == event["index"]
            block = None
    assert block is None
    assert [event["type"] for event in whole[-2:]] == ["message_delta", "message_stop"]
