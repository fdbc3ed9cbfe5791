"""Chat answers and streams as the Responses API's."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from sage_gateway.dialects.base import MalformedAnswer
from sage_gateway.dialects.responses_answer import whole_response
from sage_gateway.dialects.responses_stream import ResponsesStream

ASKED = {"model": "alias", "input": "hi", "max_output_tokens": 7, "metadata": {"k": "v"}}
# The client package's own classes, by the type of their event.
EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}


def valid(event: dict[str, Any]) -> None:
    """As the unmodified client reads it, nothing missing and of the right types."""
    EVENTS[event["type"]].model_validate(event, strict=True)


def test_a_text(talk: Any) -> None:
    answer = talk.answer({"role": "assistant", "content": "Hello"})
    response = orjson.loads(whole_response(answer, ASKED, talk.stamp))
    assert Response.model_validate(response, strict=True).output_text == "Hello"
    assert response["id"] == "resp_t1"
    assert response["created_at"] == 1_700_000_000
    assert (response["model"], response["status"]) == ("alias", "completed")
    assert (response["max_output_tokens"], response["metadata"]) == (7, {"k": "v"})
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 16,
    }


def test_reasoning_refusal_and_calls(talk: Any) -> None:
    message = {
        "content": None,
        "reasoning_content": "Hm.",
        "tool_calls": [talk.call(0, "f", '{"a":1}'), talk.call(1, "g")],
    }
    response = orjson.loads(whole_response(talk.answer(message, "tool_calls"), ASKED, talk.stamp))
    Response.model_validate(response, strict=True)
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "function_call",
        "function_call",
    ]
    assert response["output"][1]["call_id"] == "call_0"
    assert response["output"][1]["arguments"] == '{"a":1}'
    refused = orjson.loads(
        whole_response(talk.answer({"content": None, "refusal": "No."}), ASKED, talk.stamp)
    )
    assert refused["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_an_answer_that_was_cut_is_incomplete(talk: Any) -> None:
    answer = talk.answer({"content": "Hel"}, "length")
    response = orjson.loads(whole_response(answer, ASKED, talk.stamp))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("answer", [b"nope", b"[]", b"{}", b'{"choices":[{"text":"x"}]}'])
def test_what_is_no_chat_answer(talk: Any, answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        whole_response(answer, ASKED, talk.stamp)


def test_the_order_of_a_streams_events(talk: Any) -> None:
    stream = ResponsesStream(ASKED, talk.stamp)
    events = talk.run(
        stream,
        [
            talk.chunk({"role": "assistant", "content": None}),
            talk.chunk({"reasoning_content": "Hm."}),
            talk.chunk({"content": "Hel"}),
            talk.chunk({"content": "lo"}),
            talk.chunk({"tool_calls": [talk.call(0, "f")]}),
            talk.chunk({"tool_calls": [talk.call(0, None, '{"a":')]}),
            talk.chunk({"tool_calls": [talk.call(0, None, "1}")]}),
            talk.chunk({"tool_calls": [talk.call(1, "g", "{}")]}),
            talk.chunk(finish="tool_calls"),
            talk.counted(cached=4),
        ],
    )
    part = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        *part,
        "reasoning_text.delta",
        "reasoning_text.done",
        *end,
        *part,
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        *end,
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        valid(event)
    last = events[-1]["response"]
    assert [item["type"] for item in last["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert last["output"][2]["arguments"] == '{"a":1}'
    assert last["usage"]["input_tokens_details"]["cached_tokens"] == 4
    assert (stream.done, stream.complete) == (True, True)
    assert (stream.usage.prompt_tokens, stream.usage.output_tokens) == (11, 5)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]


def test_a_stream_that_was_cut_is_incomplete(talk: Any) -> None:
    events = talk.run(
        ResponsesStream(ASKED, talk.stamp),
        [talk.chunk({"content": "Hel"}), talk.chunk(finish="length"), talk.counted()],
    )
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


def test_logprobs_come_with_their_pieces(talk: Any) -> None:
    found = [{"token": "x", "logprob": -0.1, "bytes": [120], "top_logprobs": []}]
    choice = {"index": 0, "delta": {"content": "x"}, "logprobs": {"content": found}}
    piece = b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
    events = talk.run(
        ResponsesStream(ASKED, talk.stamp), [piece, talk.chunk(finish="stop"), talk.counted()]
    )
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert deltas[0]["logprobs"] == found
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == found


def test_a_stream_without_a_reason_to_end_is_not_complete(talk: Any) -> None:
    stream = ResponsesStream(ASKED, talk.stamp)
    out = stream.feed(talk.chunk({"content": "Hel"})) + stream.rest()
    assert not stream.complete
    events = talk.events(out + stream.broken_off(502, "Engine 'e' went away."))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["sequence_number"] == len(events) - 1
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["message"] == "Engine 'e' went away."
    valid(events[-1])
    with pytest.raises(MalformedAnswer, match="without finishing"):
        ResponsesStream(ASKED, talk.stamp).feed(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b"data: {nope\n\n", "not JSON"),
        (b"data: []\n\n", "not an object"),
        (b'data: {"error":{"message":"out of memory"}}\n\n', "broke its answer off: out of memory"),
        (b'data: {"choices":[3]}\n\n', "not objects"),
    ],
)
def test_events_that_are_none(talk: Any, event: bytes, said: str) -> None:
    with pytest.raises(MalformedAnswer, match=said):
        ResponsesStream(ASKED, talk.stamp).feed(event)


def test_pieces_of_calls_that_are_mixed(talk: Any) -> None:
    stream = ResponsesStream(ASKED, talk.stamp)
    stream.feed(talk.chunk({"tool_calls": [talk.call(0, "f"), talk.call(1, "g")]}))
    with pytest.raises(MalformedAnswer, match="mixed"):
        stream.feed(talk.chunk({"tool_calls": [talk.call(0, None, "{}")]}))


PIECES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"content": st.text(min_size=1, max_size=5)}),
        st.fixed_dictionaries({"reasoning_content": st.text(min_size=1, max_size=5)}),
        st.just({"tool_calls": []}),
    ),
    max_size=8,
)


@given(deltas=PIECES, cut=st.integers(1, 40), windows=st.booleans())
def test_any_stream_in_any_pieces(talk_free: Any, deltas: Any, cut: int, windows: bool) -> None:
    """The events do not depend on how the bytes were cut; what was said is what is told."""
    talk = talk_free
    data = b"".join(talk.chunk(delta) for delta in deltas) + talk.chunk(finish="stop")
    data += talk.counted()
    if windows:
        data = data.replace(b"\n\n", b"\r\n\r\n")
    whole = talk.run(ResponsesStream(ASKED, talk.stamp), [data])
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    assert talk.run(ResponsesStream(ASKED, talk.stamp), pieces) == whole
    for kind, field in (("output_text", "content"), ("reasoning_text", "reasoning_content")):
        told = [e["delta"] for e in whole if e["type"] == f"response.{kind}.delta"]
        assert told == [delta[field] for delta in deltas if field in delta]
    open_items = 0
    for event in whole:
        open_items += event["type"] == "response.output_item.added"
        open_items -= event["type"] == "response.output_item.done"
        assert open_items in (0, 1)
        valid(event)
    assert whole[-1]["type"] == "response.completed"
