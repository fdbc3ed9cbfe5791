"""The event stream parser: the same events however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import EngineUnavailable
from sage_prefect.inference.sse import ServerSentEvent, SSEParser

LINE = st.text(
    st.characters(blacklist_characters="\r\n\x00", blacklist_categories=["Cs"]), max_size=12
)


def parse(*pieces: bytes) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [("a", "message")]),
        (b"data:a\n\n", [("a", "message")]),
        (b"data:  a\n\n", [(" a", "message")]),
        (b"data: a\r\n\r\n", [("a", "message")]),
        (b"data: a\r\rdata: b\r\r", [("a", "message"), ("b", "message")]),
        (b"data: a\ndata: b\n\n", [("a\nb", "message")]),
        (b": comment\ndata: a\n\n", [("a", "message")]),
        (b"event: error\ndata: a\n\n", [("a", "error")]),
        (b"event: x\n\ndata: a\n\n", [("a", "message")]),
        (b"id: 1\nretry: 5\nfoo: bar\ndata: a\n\n", [("a", "message")]),
        (b"data\n\n", [("", "message")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("a", "message")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"\n\n\n", []),
        ("data: ü€😀\n\n".encode(), [("ü€😀", "message")]),
    ],
)
def test_follows_the_specification(stream: bytes, expected: list[tuple[str, str]]) -> None:
    events = [tuple(event) for event in parse(stream)]
    assert events == expected
    assert [tuple(event) for event in parse(*(bytes([b]) for b in stream))] == expected


@given(
    messages=st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    comments=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_cutting_gives_the_same_events(
    messages: list[list[str]], end: str, comments: bool, cuts: list[int]
) -> None:
    text = "".join(
        (f": hm{end}" if comments else "") + "".join(f"data: {line}{end}" for line in lines) + end
        for lines in messages
    )
    stream = text.encode()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[a:b] for a, b in pairwise(places)]
    assert [event.data for event in parse(*pieces)] == ["\n".join(lines) for lines in messages]


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="more than"):
        parse(*[b"x" * 2**20] * 20)
