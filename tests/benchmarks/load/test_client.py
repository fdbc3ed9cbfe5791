"""The client against a server that misbehaves on command."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sage_bench.load import record as outcome
from sage_bench.load.client import Client, ClientOptions
from sage_bench.load.closed_loop import ClosedLoop
from sage_bench.load.open_loop import OpenLoop
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import LoadRequest
from sage_bench.load.run import Bounds
from sage_bench.load.target import Target
from sage_prefect.common.errors import BenchmarkError

from .conftest import Call, ScriptedServer

ANSWER = b'{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}'
CHAT = LoadRequest("chat", b'{"model": "m"}')
STREAM = LoadRequest("chat", b'{"model": "m", "stream": true}', stream=True)
TOKEN = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


async def good(call: Call) -> None:
    await call.answer(200, ANSWER)


async def ask(client: Client, *requests: LoadRequest, index: int = 0) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    for offset, request in enumerate(requests):
        client.start(index + offset, request, client.now(), records.append)
    assert await client.drained(30)
    return sorted(records, key=lambda record: record.index)


async def test_connections_are_used_again(server: ScriptedServer, target: Target) -> None:
    server.plays(good)
    options = ClientOptions(headers=(("x-a", "1%b"),), api_key="sk-x")
    async with Client([target], options) as client:
        (first,) = await ask(client, CHAT)
        (second,) = await ask(client, CHAT, index=1)
    assert first.ok
    assert second.ok
    assert (first.reused, second.reused) == (False, True)
    assert server.connections == client.connections_opened == 1
    head = server.calls[1].head
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    for line in (b"x-request-id: load-1", b"x-a: 1%b", b"authorization: Bearer sk-x"):
        assert line + b"\r\n" in head
    assert server.calls[1].body == CHAT.body


async def test_requests_in_flight_have_connections_of_their_own(
    server: ScriptedServer, target: Target
) -> None:
    together = asyncio.Event()

    async def wait_for_all(call: Call) -> None:
        if len(server.calls) == 3:
            together.set()
        await together.wait()
        await good(call)

    server.plays(wait_for_all)
    async with Client([target]) as client:
        records = await ask(client, CHAT, CHAT, CHAT)
    assert all(record.ok for record in records)
    assert server.connections == client.most_in_flight == 3


async def test_a_stream(server: ScriptedServer, target: Target) -> None:
    async def play(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(TOKEN[:10])
        await call.chunk(TOKEN[10:] + TOKEN)
        await call.chunk(END)
        await call.chunk(b"")

    server.plays(play)
    async with Client([target]) as client:
        (record,) = await ask(client, STREAM)
    assert record.ok
    assert record.chunks == 2
    assert record.sent_s is not None
    assert record.first_token_s is not None
    assert record.started_s <= record.sent_s <= record.first_token_s


async def test_the_server_sees_a_client_that_leaves(server: ScriptedServer, target: Target) -> None:
    gone = asyncio.Event()

    async def play(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(TOKEN)
        await call.client_gone()
        gone.set()

    server.plays(play)
    leaver = LoadRequest("chat", b"{}", stream=True, abandon_after=1)
    async with Client([target]) as client:
        (record,) = await ask(client, leaver)
        await asyncio.wait_for(gone.wait(), 30)
    assert record.error == outcome.ABANDONED


async def close(call: Call) -> None:
    call.writer.close()


async def reset_amid_stream(call: Call) -> None:
    await call.begin_stream()
    await call.chunk(TOKEN)
    call.writer.close()


async def cut_in_chunk(call: Call) -> None:
    await call.begin_stream()
    await call.send(b"ff\r\n" + TOKEN)
    call.writer.close()


async def noise(call: Call) -> None:
    await call.send(b"\x00\x01 this is no HTTP\r\n\r\n")


async def too_short(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + ANSWER)
    call.writer.close()


async def bad_chunk(call: Call) -> None:
    await call.begin_stream()
    await call.send(b"zz\r\nno size\r\n")


async def busy(call: Call) -> None:
    await call.answer(503, b"{}", b"retry-after: 2")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (close, outcome.RESET),
        (reset_amid_stream, outcome.TRUNCATED),
        (cut_in_chunk, outcome.TRUNCATED),
        (noise, outcome.PROTOCOL),
        (too_short, outcome.TRUNCATED),
        (bad_chunk, outcome.PROTOCOL),
        (busy, outcome.STATUS),
    ],
)
async def test_faults_have_names(
    server: ScriptedServer,
    target: Target,
    script: object,
    error: str,
) -> None:
    server.plays(script)  # type: ignore[arg-type]
    async with Client([target]) as client:
        (record,) = await ask(client, STREAM)
    assert record.error == error
    assert len(server.calls) == 1, "never sent twice"


async def test_bytes_beyond_the_answer_spoil_the_connection(
    server: ScriptedServer, target: Target
) -> None:
    async def play(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%bHTTP/1.1 200 OK\r\n"
            b"content-length: 2\r\n\r\n{}" % (len(ANSWER), ANSWER)
        )

    server.plays(play)
    async with Client([target]) as client:
        (first,) = await ask(client, CHAT)
        (second,) = await ask(client, CHAT, index=1)
    assert first.ok
    assert second.ok
    assert not second.reused


async def test_an_answer_that_ends_with_its_connection(
    server: ScriptedServer, target: Target
) -> None:
    async def play(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\n\r\n" + ANSWER)
        call.writer.close()

    server.plays(play)
    async with Client([target]) as client:
        (record,) = await ask(client, CHAT)
    assert record.ok


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        target = Target.parse(f"http://127.0.0.1:{taken.getsockname()[1]}")
        async with Client([target]) as client:
            (record,) = await ask(client, CHAT)
    assert record.error == outcome.CONNECT
    assert record.sent_s is None


async def hang(call: Call) -> None:
    await call.client_gone()


async def test_time_limits_and_the_end_of_the_run(server: ScriptedServer, target: Target) -> None:
    server.plays(hang)
    async with Client([target], ClientOptions(timeout_s=0.05)) as client:
        (record,) = await ask(client, CHAT)
        assert record.error == outcome.TIMEOUT
    records: list[RequestRecord] = []
    async with Client([target]) as client:
        client.start(0, CHAT, 0.0, records.append)
        assert not await client.drained(0.01)
        client.cut_off("over")
        assert client.in_flight == 0
    assert [record.error for record in records] == [outcome.UNFINISHED]


async def test_more_than_may_be_in_flight(server: ScriptedServer, target: Target) -> None:
    server.plays(hang)
    records: list[RequestRecord] = []
    async with Client([target], ClientOptions(max_in_flight=2)) as client:
        for index in range(3):
            client.start(index, CHAT, 0.0, records.append)
        assert [record.error for record in records] == [outcome.CLIENT_LIMIT]
        assert records[0].index == 2
    assert len(records) == 3


# -- loops --------------------------------------------------------------------------------


async def test_open_loop_sends_all_at_their_times(server: ScriptedServer, target: Target) -> None:
    server.plays(good)
    times = [0.0, 0.0, 0.01, 0.02, 0.02]
    async with Client([target]) as client:
        arrivals = ((at, CHAT) for at in times)
        run = await OpenLoop(client, arrivals, Bounds(requests=9, warmup_s=0.01)).run()
    assert [record.scheduled_s for record in run.records] == times
    assert [record.index for record in run.records] == list(range(5))
    assert all(record.ok for record in run.records)
    assert all(record.schedule_error_s > -0.001 for record in run.records)
    assert [record.warmup for record in run.records] == [True, True, False, False, False]
    assert not run.interrupted


async def test_open_loop_does_not_wait_for_answers(server: ScriptedServer, target: Target) -> None:
    together = asyncio.Event()

    async def wait_for_all(call: Call) -> None:
        if len(server.calls) == 100:
            together.set()
        await together.wait()
        await good(call)

    server.plays(wait_for_all)
    async with Client([target]) as client:
        run = await OpenLoop(client, [(0.0, CHAT)] * 100, Bounds(requests=100)).run()
    assert all(record.ok for record in run.records)
    assert run.most_in_flight == 100


@pytest.mark.parametrize("times", [[0.0, -1.0], [2.0, 1.0], [float("nan")], []])
async def test_open_loop_refuses_odd_times(
    server: ScriptedServer, target: Target, times: list[float]
) -> None:
    server.plays(good)
    async with Client([target]) as client:
        with pytest.raises(BenchmarkError):
            await OpenLoop(client, [(at, CHAT) for at in times], Bounds(requests=9)).run()


async def test_a_workload_that_fails_ends_the_run(server: ScriptedServer, target: Target) -> None:
    server.plays(good)

    def broken() -> object:
        yield 0.0, CHAT
        yield 0.0, CHAT
        raise ZeroDivisionError

    async with Client([target]) as client:
        with pytest.raises(ZeroDivisionError):
            await OpenLoop(client, broken(), Bounds(requests=9)).run()  # type: ignore[arg-type]


async def test_open_loop_bounds_and_stop(server: ScriptedServer, target: Target) -> None:
    server.plays(good)
    async with Client([target]) as client:
        by_time = await OpenLoop(
            client, ((i / 100, CHAT) for i in range(10**9)), Bounds(duration_s=0.05)
        ).run()
        assert len(by_time.records) == 5
        loop = OpenLoop(client, [(0.0, CHAT), (1e6, CHAT)], Bounds(requests=2))

        async def answer_and_stop(call: Call) -> None:
            await good(call)
            loop.stop()

        server.plays(answer_and_stop)
        stopped = await loop.run()
    assert stopped.interrupted
    assert len(stopped.records) == 1


async def test_unfinished_requests_are_cut_off(server: ScriptedServer, target: Target) -> None:
    server.plays(hang)
    async with Client([target]) as client:
        run = await OpenLoop(client, [(0.0, CHAT)], Bounds(requests=1, drain_s=0.0)).run()
    assert run.records[0].error == outcome.UNFINISHED


async def test_closed_loop_keeps_its_users_busy(server: ScriptedServer, target: Target) -> None:
    server.plays(good)
    async with Client([target]) as client:
        loop = ClosedLoop(client, iter(lambda: CHAT, None), 3, Bounds(requests=20))
        run = await loop.run()
        assert len(run.records) == 20
        assert run.most_in_flight <= 3
        ends = await ClosedLoop(client, iter([CHAT] * 4), 3, Bounds(requests=20)).run()
    assert len(ends.records) == 4
    assert all(record.ok for record in (*run.records, *ends.records))


async def test_closed_loop_backs_off_after_failures_and_stops_on_time(
    server: ScriptedServer, target: Target
) -> None:
    server.plays(busy)
    async with Client([target]) as client:
        loop = ClosedLoop(
            client, iter(lambda: CHAT, None), 2, Bounds(duration_s=0.05), back_off_s=60.0
        )
        run = await loop.run()
    assert len(run.records) == 2


async def test_several_targets_in_turn(server: ScriptedServer, target: Target) -> None:
    server.plays(good)
    async with Client([target, target]) as client:
        records = await ask(client, CHAT, CHAT, CHAT)
    assert [record.target for record in records] == [0, 1, 0]


@pytest.mark.parametrize(
    "bounds", [{}, {"requests": 0}, {"duration_s": float("nan")}, {"requests": 1, "drain_s": -1.0}]
)
def test_bounds_are_checked(bounds: dict[str, float]) -> None:
    with pytest.raises(BenchmarkError):
        Bounds(**bounds)  # type: ignore[arg-type]
