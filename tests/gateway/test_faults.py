"""Engines that fail: retry before the first byte, an error event after it, never silence."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import time
import tracemalloc
from typing import Any

import openai
import orjson
import pytest

from sage_gateway.config import HealthConfig
from sage_gateway.upstream import Timeouts
from sage_prefect.control_plane.events import EngineState, Limits

QUIET = HealthConfig(probe_interval_s=60, failures=1000)


async def reset(request: Any) -> None:
    request.reset()


async def half_answer(request: Any) -> None:
    await request.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    )
    request.reset()


async def garbage(request: Any) -> None:
    await request.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    await request.until_gone()


async def endless_head(request: Any) -> None:
    await request.send(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 20_000)
    await request.until_gone()


async def smuggled(request: Any) -> None:
    await request.send(
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\n\r\n"
    )
    await request.until_gone()


async def server_error(request: Any) -> None:
    await request.answer(500, b"<html>oops</html>", "text/html")


async def overloaded(request: Any) -> None:
    await request.answer(503, b'{"error":{"message":"queue full","code":"busy"}}')


FAULTS = [reset, half_answer, garbage, endless_head, smuggled, server_error, overloaded]

IN_TURN = "least_outstanding"
"""Of equal engines the first registered is asked first."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_another_engine_takes_over(lab: Any, fault: Any, stream: bool) -> None:
    bad, good = await lab.peer(fault), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"), lab.engine(good, "good"), health=QUIET, policy=IN_TURN
    )
    answer = await gateway.chat(stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-sage-engine"] == "good"
    assert len(bad.posts) == len(good.posts) == 1
    assert gateway.gateway.manager.running == 0


@pytest.mark.parametrize(
    ("fault", "status"), [(reset, 502), (half_answer, 502), (garbage, 502), (endless_head, 502)]
)
async def test_the_only_engine_fails(lab: Any, fault: Any, status: int) -> None:
    peer = await lab.peer(fault)
    gateway = await lab.gateway(lab.engine(peer, "lonely"), health=QUIET)
    answer = await gateway.chat()
    assert answer.status_code == status
    error = answer.json()["error"]
    assert "'lonely'" in error["message"]
    assert error["type"] == "engine_error"
    assert len(peer.posts) == 1


async def test_the_engines_own_error_comes_through(lab: Any) -> None:
    async def refuse(request: Any) -> None:
        await request.answer(400, b'{"error":{"message":"bad temperature","param":"temperature"}}')

    peer = await lab.peer(refuse)
    gateway = await lab.gateway(lab.engine(peer))
    answer = await gateway.chat(stream=True)
    assert answer.status_code == 400
    assert answer.json()["error"] == {"message": "bad temperature", "param": "temperature"}
    busy = await lab.peer(overloaded)
    gateway = await lab.gateway(lab.engine(busy), health=QUIET)
    answer = await gateway.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "queue full"


async def test_an_error_of_another_shape_is_put_into_openais(lab: Any) -> None:
    peer = await lab.peer(server_error)
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    error = (await gateway.chat()).json()["error"]
    assert "status 500" in error["message"]
    assert error["code"] == "engine_error"


async def test_retries_have_a_budget(lab: Any) -> None:
    peers = [await lab.peer(reset) for _ in range(5)]
    engines = [lab.engine(peer, f"e{i}") for i, peer in enumerate(peers)]
    gateway = await lab.gateway(*engines, health=QUIET, scheduling=Limits(max_retries=2))
    assert (await gateway.chat()).status_code == 502
    assert sum(len(peer.posts) for peer in peers) == 3


@pytest.mark.parametrize(("engines", "attempts"), [(1, 3), (4, 3)])
async def test_clients_do_not_retry_what_the_gateway_has_retried(
    lab: Any, engines: int, attempts: int
) -> None:
    """One engine: nothing to retry with here, so the client's retries are the only ones."""
    peers = [await lab.peer(reset) for _ in range(engines)]
    configs = [lab.engine(peer, f"e{i}") for i, peer in enumerate(peers)]
    gateway = await lab.gateway(*configs, health=QUIET, scheduling=Limits(max_retries=2))
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=lab.KEY, max_retries=2
    ) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**lab.CHAT)
    assert caught.value.status_code == 502
    assert sum(len(peer.posts) for peer in peers) == attempts
    told = caught.value.response.headers.get("x-should-retry")
    assert told == (None if engines == 1 else "false")


async def test_a_limit_of_the_engine_is_told_with_its_time(lab: Any) -> None:
    async def limited(request: Any) -> None:
        await request.send(
            b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}"
        )

    gateway = await lab.gateway(lab.engine(await lab.peer(limited)), health=QUIET)
    answer = await gateway.chat()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert "status 429" in answer.json()["error"]["message"]


async def test_a_truncated_chunked_answer_is_no_answer(lab: Any) -> None:
    async def truncated(request: Any) -> None:
        await request.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n'
        )
        request.writer.close()

    bad, good = await lab.peer(truncated), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"), lab.engine(good, "good"), health=QUIET, policy=IN_TURN
    )
    answer = await gateway.chat()
    assert (answer.status_code, answer.headers["x-sage-engine"]) == (200, "good")
    assert len(bad.posts) == 1


async def test_an_answer_of_200_mb_passes_without_being_held(lab: Any) -> None:
    piece, count = b"x" * (1 << 20), 200

    async def huge(request: Any) -> None:
        await request.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % (len(piece) * count)
        )
        for _ in range(count):
            await request.send(piece)

    gateway = await lab.gateway(lab.engine(await lab.peer(huge)))
    tracemalloc.start()
    try:
        size = 0
        async with gateway.client.stream("POST", "/v1/chat/completions", json=lab.CHAT) as answer:
            async for data in answer.aiter_raw():
                size += len(data)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == len(piece) * count
    assert held < 40 << 20  # engine, gateway and client together


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_after_1000_random_kills_no_stream_was_cut_silently(lab: Any, path: str) -> None:
    """Engines drop the connection after a random part of their stream, at a random time."""
    draw = random.Random(5)
    words = b"".join(lab.delta(f"word{n} ") for n in range(20))
    stream = words + lab.FINISH + lab.USAGE + lab.DONE
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream), stream)

    async def dies(request: Any) -> None:
        await request.start_events()
        end, at = draw.choice((draw.randrange(len(framed)), len(framed))), 0
        while at < end:
            step = draw.randrange(1, 400)
            await request.send(framed[at : min(end, at + step)])
            at += step
            if draw.random() < 0.2:
                await asyncio.sleep(0)
        request.writer.close() if draw.random() < 0.5 else request.reset()

    engines = [lab.engine(await lab.peer(dies), f"e{n}") for n in range(4)]
    gateway = await lab.gateway(*engines, health=QUIET, scheduling=Limits(max_retries=0))
    body: dict[str, Any] = {**lab.CHAT, "stream": True}
    if path == "/v1/messages":
        body["max_tokens"] = 50
    elif path == "/v1/responses":
        body["input"] = body.pop("messages")[-1]["content"]
    seen: collections.Counter[str] = collections.Counter()

    async def ask() -> None:
        answer = await gateway.client.post(path, json=body)
        if answer.status_code != 200:
            seen["status"] += 1
            assert answer.status_code == 502
            return
        last = answer.content.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        whole = (b"[DONE]", b"message_stop", b"response.completed")
        if any(end in last for end in whole):
            assert b"word19" in answer.content
            seen["whole"] += 1
            return
        assert b"error" in last or b"response.failed" in last, last
        assert not any(end in answer.content for end in whole)
        seen["told"] += 1

    for _ in range(50):
        await asyncio.gather(*(ask() for _ in range(20)))
    assert seen.total() == 1000
    assert min(seen["whole"], seen["told"]) >= 200
    assert gateway.gateway.manager.running == gateway.gateway.manager.queued == 0


async def test_a_refused_connection_makes_the_engine_suspect_until_it_answers(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, "e1"))
    await peer.stop()
    down = await gateway.chat()
    assert down.status_code == 502
    assert "cannot be reached" in down.json()["error"]["message"]
    entry = gateway.gateway.manager.ledger.get("e1")
    assert entry.state is EngineState.SUSPECT
    at_once = await gateway.chat()
    assert at_once.status_code == 503
    assert at_once.json()["error"]["code"] == "no_engine_available"
    assert int(at_once.headers["retry-after"]) >= 1
    assert (await gateway.client.get("/ready")).status_code == 503
    await peer.start()  # the same port
    await lab.until(lambda: entry.state is EngineState.READY)
    assert (await gateway.client.get("/ready")).status_code == 200
    assert (await gateway.chat()).status_code == 200
    assert any(request.path == "/health" for request in peer.requests)


async def test_a_stale_connection_is_replaced_without_a_failure(lab: Any) -> None:
    async def once(request: Any) -> None:
        await lab.chat(request)
        request.reset()

    peer = await lab.peer(once)
    gateway = await lab.gateway(lab.engine(peer, "e1"))
    for _ in range(10):
        assert (await gateway.chat()).status_code == 200
    assert gateway.metric("sage_gateway_upstream_failures_total", engine="e1", cause="reset") == 0


@pytest.mark.parametrize("held", [b"", b'data: {"choices":[{"index":0,"del'])
async def test_a_stream_that_breaks_ends_with_an_error_event(lab: Any, held: bytes) -> None:
    async def dies(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        if held:
            await request.chunk(held)
        await lab.until(seen.is_set)
        request.reset()

    seen = asyncio.Event()
    bad, good = await lab.peer(dies), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"), lab.engine(good, "good"), health=QUIET, policy=IN_TURN
    )
    async with gateway.client.stream(
        "POST", "/v1/chat/completions", json={**lab.CHAT, "stream": True}
    ) as answer:
        content = b""
        async for piece in answer.aiter_raw():
            content += piece
            seen.set()
    assert answer.status_code == 200
    events = content.split(b"\n\n")
    assert events[0] + b"\n\n" == lab.delta("Hel")
    error = orjson.loads(events[1].removeprefix(b"data: "))["error"]
    assert "'bad'" in error["message"]
    assert events[2:] == [b""]
    assert b"[DONE]" not in content
    assert not good.posts
    assert gateway.gateway.manager.running == 0


async def test_a_stream_that_ends_early_but_cleanly_is_an_error_too(lab: Any) -> None:
    async def gives_up(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        await request.end_events()

    peer = await lab.peer(gives_up)
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    content = (await gateway.chat(stream=True)).content
    assert b'"error"' in content
    assert b"without finishing" in content


async def test_a_stream_closed_after_done_is_whole(lab: Any) -> None:
    async def hasty(request: Any) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        await request.send(lab.delta("Hi") + lab.FINISH + lab.DONE)
        request.writer.close()

    peer = await lab.peer(hasty)
    gateway = await lab.gateway(lab.engine(peer))
    content = (await gateway.chat(stream=True)).content
    assert content == lab.delta("Hi") + lab.FINISH + lab.DONE


async def test_an_engine_that_never_answers_times_out(lab: Any) -> None:
    async def silent(request: Any) -> None:
        await request.until_gone()
        gone.set()

    gone = asyncio.Event()
    peer = await lab.peer(silent)
    timeouts = Timeouts(first_byte_s=0.05)
    gateway = await lab.gateway(lab.engine(peer, "e1"), timeouts=timeouts, health=QUIET)
    answer = await gateway.chat()
    assert answer.status_code == 504
    assert "did not answer within 0.05 s" in answer.json()["error"]["message"]
    await asyncio.wait_for(gone.wait(), 10)


async def test_a_stream_that_stalls_times_out(lab: Any) -> None:
    async def stalls(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        await request.until_gone()

    peer = await lab.peer(stalls)
    gateway = await lab.gateway(lab.engine(peer), timeouts=Timeouts(idle_s=0.05), health=QUIET)
    content = (await gateway.chat(stream=True)).content
    assert content.startswith(lab.delta("Hel"))
    assert b"sent nothing more" in content
    assert b"timeout_error" in content


async def test_several_lost_connections_make_an_engine_suspect(lab: Any) -> None:
    async def loses(request: Any) -> None:
        if request.method == "GET":
            await request.until_gone()
        request.reset()

    peer = await lab.peer(loses)
    health = HealthConfig(probe_interval_s=0.02, failures=3)
    gateway = await lab.gateway(lab.engine(peer, "e1"), health=health)
    assert [(await gateway.chat()).status_code for _ in range(4)] == [502, 502, 502, 503]
    assert len(peer.posts) == 3


async def test_unasked_bytes_never_reach_the_next_request(lab: Any) -> None:
    async def talkative(request: Any) -> None:
        await lab.chat(request)
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nPOISONED")

    peer = await lab.peer(talkative)
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    for _ in range(5):
        answer = await gateway.chat()
        assert b"POISONED" not in answer.content
        assert answer.status_code == 200


async def test_continue_before_the_answer(lab: Any) -> None:
    async def polite(request: Any) -> None:
        await request.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await lab.chat(request)

    peer = await lab.peer(polite)
    gateway = await lab.gateway(lab.engine(peer))
    assert (await gateway.chat()).json()["choices"][0]["message"]["content"] == "Hello"


async def test_unknown_host(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine("http://no-such-host.invalid/v1", "e1"))
    answer = await gateway.chat()
    assert answer.status_code == 502
    assert "cannot be reached" in answer.json()["error"]["message"]


async def test_no_stream_is_ever_silently_truncated(lab: Any) -> None:
    """An engine that dies after any byte of its stream: the client sees all of it, or an error."""
    stream = lab.delta("Hel") + lab.delta("lo") + lab.FINISH + lab.USAGE + lab.DONE
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream), stream)
    kills = iter(range(0, len(framed) + 1, 5))

    async def dies(request: Any) -> None:
        await request.start_events()
        await request.send(framed[: next(kills)])
        # A clean end of the connection and a reset in turns.
        request.writer.close() if len(peer.posts) % 2 else request.reset()

    peer = await lab.peer(dies)
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    whole = lab.delta("Hel") + lab.delta("lo") + lab.FINISH + lab.DONE
    outcomes = {"whole": 0, "event": 0, "status": 0}
    for _ in range(0, len(framed) + 1, 5):
        answer = await gateway.chat(stream=True)
        if answer.status_code != 200:
            outcomes["status"] += 1
            assert answer.status_code == 502
        elif answer.content == whole:
            outcomes["whole"] += 1
        else:
            outcomes["event"] += 1
            last = answer.content.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
            assert "error" in orjson.loads(last.removeprefix(b"data: "))
            assert b"[DONE]" not in answer.content
    assert all(outcomes.values())
    assert gateway.gateway.manager.running == 0


async def test_requests_wait_for_an_engine_that_restarts(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    assert (await gateway.chat()).status_code == 200
    await peer.stop()
    calls = [asyncio.ensure_future(gateway.chat(stream=bool(i % 2))) for i in range(6)]
    await lab.until(lambda: gateway.gateway.manager.queued == 6)
    assert gateway.gateway.health.is_suspect("e1")
    await peer.start()
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 6


async def test_requests_do_not_wait_for_an_engine_for_ever(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), scheduling=Limits(unavailable_wait_s=0.05))
    await gateway.gateway.check_engines()
    await peer.stop()
    answer = await gateway.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_engine_available"
    assert answer.headers["retry-after"] == "2"


async def test_an_engine_that_never_was_there_is_an_error_at_once(lab: Any) -> None:
    peer = await lab.peer()
    await peer.stop()
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    await gateway.gateway.check_engines()
    answer = await gateway.chat()
    assert answer.status_code == 503
    assert "e1 is suspect" in answer.json()["error"]["message"]


async def test_an_engine_that_is_full_costs_no_retry(lab: Any) -> None:
    full, broken, good = await lab.peer(overloaded), await lab.peer(server_error), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(full, "full"),
        lab.engine(broken, "broken"),
        lab.engine(good, "good"),
        scheduling=Limits(max_retries=1),
        policy="fifo",
        health=QUIET,
    )
    answer = await gateway.chat()
    assert answer.status_code == 200
    assert [len(peer.posts) for peer in (full, broken, good)] == [1, 1, 1]
    name = "sage_gateway_upstream_failures_total"
    assert gateway.metric(name, engine="full", cause="overloaded") == 1
    assert gateway.metric(name, engine="broken", cause="status") == 1


async def test_a_head_that_drips_has_no_more_time_than_one_that_does_not_come(lab: Any) -> None:
    async def drips(request: Any) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                await request.send(b"x-a: b\r\n")
                await asyncio.sleep(0.005)

    peer = await lab.peer(drips)
    timeouts = Timeouts(first_byte_s=0.1)
    gateway = await lab.gateway(lab.engine(peer), timeouts=timeouts, health=QUIET)
    answer = await gateway.chat()
    assert answer.status_code == 504
    assert "did not answer within 0.1 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("days", [-2, 2])
async def test_a_wall_clock_that_jumps_changes_nothing(
    lab: Any, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Waits, limits and streams go by the monotonic clock."""
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> None:
        await request.start_events()
        await request.chunk(lab.delta("Hel"))
        began.set()
        await goes_on.wait()
        await request.chunk(lab.delta("lo") + lab.FINISH + lab.DONE)
        await request.end_events()

    peer = await lab.peer(slow)
    gateway = await lab.gateway(lab.engine(peer, max_concurrency=1), health=QUIET)
    running = asyncio.ensure_future(gateway.chat(stream=True))
    await asyncio.wait_for(began.wait(), 10)
    waiting = asyncio.ensure_future(gateway.chat(stream=True))
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + days * 86_400)
    goes_on.set()
    for answer in await asyncio.gather(running, waiting):
        assert answer.content.endswith(lab.DONE)
    assert (await gateway.client.get("/v1/management/state")).json()["running"] == 0


async def test_an_engine_hears_within_50_ms_that_the_client_has_left(lab: Any) -> None:
    """The median of twenty: one may meet a busy machine."""
    heard: asyncio.Queue[float] = asyncio.Queue()
    clock = asyncio.get_running_loop().time

    async def long(request: Any) -> None:
        if request.json.get("stream"):
            await request.start_events()
            await request.chunk(lab.delta("Once"))
        await request.until_gone()
        heard.put_nowait(clock())

    peer = await lab.peer(long)
    gateway = await lab.gateway(lab.engine(peer), health=QUIET)
    took = []
    for number in range(20):
        _, writer = await gateway.post_raw(orjson.dumps({**lab.CHAT, "stream": number % 2 == 0}))
        await lab.until(lambda: len(peer.posts) > len(took))
        left = clock()
        writer.transport.abort()
        took.append(await asyncio.wait_for(heard.get(), 10) - left)
    assert sorted(took)[10] < 0.05
