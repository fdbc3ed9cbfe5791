"""Events come out whole, however the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bench.load import event_stream
from sage_bench.load.event_stream import EventStream, EventTooLong

payloads = st.lists(st.binary(min_size=1, max_size=20).map(bytes.hex).map(str.encode), max_size=8)


@given(payloads, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 400), max_size=10))
def test_any_cut_gives_the_same_events(
    wanted: list[bytes], newline: bytes, cuts: list[int]
) -> None:
    whole = b"".join(b"data: %b%b%b" % (payload, newline, newline) for payload in wanted)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    stream = EventStream()
    found = [
        payload
        for start, end in itertools.pairwise(edges)
        for payload in stream.feed(whole[start:end])
    ]
    assert found == wanted
    assert not stream.mid_event


def test_comments_names_and_several_data_lines() -> None:
    stream = EventStream()
    assert stream.feed(b": ping\n\nevent: x\nid: 7\ndata: one\ndata:two\n\ndata: th") == [
        b"one\ntwo"
    ]
    assert stream.mid_event


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 10)
    stream = EventStream()
    assert stream.feed(b"data: 123") == []
    with pytest.raises(EventTooLong):
        stream.feed(b"456789")
