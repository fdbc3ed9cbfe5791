"""What the control plane hears of a stream between its first token and its end."""

from __future__ import annotations

from typing import Any

import pytest

from sage_gateway import stream_progress
from sage_gateway.stream_progress import StreamProgress
from sage_prefect.control_plane.events import Done, FirstToken, Progress

ONE = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def test_events_are_counted_since_the_last_report_and_reports_keep_their_distance() -> None:
    told: list[int] = []
    progress = StreamProgress(told.append, 10.0)
    for now in (10.1, 10.2, 10.24):
        progress.passed(ONE, now)
    assert told == []
    progress.passed(ONE, 10.25)
    assert told == [4]
    progress.passed(ONE, 10.49)
    progress.passed(ONE, 10.6)
    assert told == [4, 2]


def test_a_read_of_several_events_is_several_tokens_and_half_an_event_is_none() -> None:
    told: list[int] = []
    progress = StreamProgress(told.append, 0.0)
    progress.passed(b"", 1.0)  # a piece, which the relay holds
    assert told == []
    progress.passed(3 * ONE, 1.1)
    progress.passed(2 * ONE.replace(b"\n\n", b"\r\n\r\n"), 2.0)
    assert told == [3, 2]


async def test_the_first_read_and_the_end_are_no_progress(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_progress, "PROGRESS_INTERVAL_S", 0.0)

    async def words(request: Any) -> None:
        if request.method == "GET":
            await lab.chat(request)
            return
        await request.start_events()
        # The gateway has passed on what the client has seen: each piece is a read of its own.
        for text, size in (("one", 1), ("two", 1), ("three", 2)):
            seen = len(sent)
            await request.chunk(size * lab.delta(text))
            await lab.until(lambda seen=seen: len(sent) > seen)
        await request.chunk(lab.FINISH + lab.USAGE + lab.DONE)
        await request.end_events()

    sent: list[bytes] = []
    peer = await lab.peer(words)
    gateway = await lab.gateway(lab.engine(peer))
    heard = lab.overhear(gateway)
    body = {**lab.CHAT, "stream": True}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for piece in answer.aiter_raw():
            sent.append(piece)
    told = [event for event in heard if isinstance(event, (FirstToken, Progress, Done))]
    assert [type(event) for event in told] == [FirstToken, Progress, Progress, Done]
    assert [event.chunks for event in told if isinstance(event, Progress)] == [1, 2]
