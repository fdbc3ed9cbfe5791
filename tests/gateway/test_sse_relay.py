from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.sse_relay import MAX_HELD, SseRelay


def event(content: object, end: bytes = b"\n\n") -> bytes:
    return b"data: " + orjson.dumps(content) + end


def content(text: str, **fields: object) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": None}], **fields})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
FINISH = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"
TEXTS = st.sampled_from(['"usage": {"a":1}', "data: [DONE]", "\n\n", "usage", "é🍎", "x" * 300])


@given(st.lists(TEXTS, max_size=6), st.booleans(), st.lists(st.integers(1, 400), max_size=30))
def test_any_cut_gives_the_same_stream(texts: list[str], withhold: bool, cuts: list[int]) -> None:
    head = b": ping\n\n" + b"".join(content(text) for text in texts) + FINISH
    stream = head + USAGE + DONE
    relay, out, position = SseRelay(withhold_usage=withhold), b"", 0
    for size in [*cuts, len(stream)]:
        out += relay.feed(stream[position : position + size])
        position += size
    out += relay.rest()
    assert out == head + (b"" if withhold else USAGE) + DONE
    assert relay.usage.prompt_tokens == 3
    assert relay.usage.output_tokens == 2
    assert relay.done
    assert relay.complete


def test_a_complete_event_leaves_at_once_and_a_piece_waits() -> None:
    relay = SseRelay(withhold_usage=True)
    one = content("a")
    assert relay.feed(one) == one
    assert relay.feed(one[:10]) == b""
    assert relay.feed(one[10:] + one[:5]) == one
    assert relay.rest() == one[:5]


def test_windows_line_ends() -> None:
    relay = SseRelay(withhold_usage=True)
    one = content("a").replace(b"\n\n", b"\r\n\r\n")
    assert relay.feed(one) == one
    assert relay.feed(USAGE.replace(b"\n\n", b"\r\n\r\n")) == b""
    assert relay.usage.prompt_tokens == 3


def test_usage_beside_text_is_not_withheld() -> None:
    relay = SseRelay(withhold_usage=True)
    both = content("a", usage={"prompt_tokens": 1})
    assert relay.feed(both) == both
    assert relay.usage.prompt_tokens == 1


@pytest.mark.parametrize(
    ("stream", "complete"),
    [
        (content("a"), False),
        (content("a") + FINISH, True),
        (content("data: [DONE]"), False),
        (content('"finish_reason":"stop"'), False),
        (content("a") + b"data:[DONE]\n", True),
        (b"", False),
    ],
)
def test_whether_the_answer_is_whole(stream: bytes, complete: bool) -> None:
    relay = SseRelay(withhold_usage=True)
    relay.feed(stream)
    relay.rest()
    assert relay.complete is complete


def test_a_long_event_passes_in_pieces() -> None:
    relay = SseRelay(withhold_usage=True)
    piece = b"data: " + b"x" * (MAX_HELD + 1)
    assert relay.feed(piece) == piece
    assert relay.broken_off(502, "why").startswith(b'\n\ndata: {"error"')
    assert relay.feed(b"y\n\n") == b"y\n\n"
    assert relay.broken_off(502, "why").startswith(b'data: {"error"')


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_passes_whole(pieces: list[bytes]) -> None:
    relay = SseRelay(withhold_usage=False)
    out = b"".join(relay.feed(piece) for piece in pieces) + relay.rest()
    assert out == b"".join(pieces)
