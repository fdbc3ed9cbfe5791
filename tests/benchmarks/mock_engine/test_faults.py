"""Faults of mock engines: of single answers, of whole engines, by control port and by text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bench.mock_engine.faults import Fault, FaultPlan
from sage_bench.mock_engine.outages import KINDS, FaultOrder, Outage
from sage_prefect.common.errors import BenchmarkError, SageError, UnknownNameError

from .conftest import Answer, Caller, call, chat, mock_server

Virtually = Callable[[Any], Any]
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"

# -- orders -------------------------------------------------------------------------------


def test_orders_are_read_from_text_and_from_json() -> None:
    order = FaultOrder.parse("crash, engine=1, at_s=5, seconds=0.5, cold_s=2")
    assert order == FaultOrder(Outage("crash", 0.5, cold_s=2), 5.0, 1)
    content = {"kind": "kill", "after_bytes": 10, "count": None}
    assert FaultOrder.from_json(content) == FaultOrder(Fault("kill", after_bytes=10, count=None))
    assert FaultOrder.parse("kill,after_bytes=10,count=none").fault == Fault(
        "kill", after_bytes=10, count=None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crush",
        "crash,seconds",
        "crash,seconds=soon",
        "crash,secnds=1",
        "crash,seconds=-1",
        "crash,seconds=nan",
        "crash,seconds=90000",
        "crash,at_s=-1",
        "crash,engine=-1",
        "crash,engine=0.5",
        "slow,factor=0",
        "slow,factor=inf",
        "stall",
        "half_open",
        "refuse,seconds=0",
        "cold",
        "status,status=200",
        "status,status=503.5",
        "kill,after_bytes=-1",
        "kill,count=0",
        "kill,probability=0",
        "kill,probability=2",
        "wrong_length,extra=0",
    ],
)
def test_orders_that_make_no_sense(text: str) -> None:
    with pytest.raises(SageError):
        FaultOrder.parse(text)


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="crash"):
        FaultOrder.parse("crahs")
    with pytest.raises(UnknownNameError, match="seconds"):
        FaultOrder.parse("crash,second=1")
    with pytest.raises(BenchmarkError, match="object"):
        FaultOrder.from_json([])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["kind", "seconds", "factor", "cold_s", "at_s", "engine", "count", "status", "extra",
             "probability", "after_bytes", "retry_after", "other"]
        ),
        st.sampled_from(KINDS) | _JSON,
    )
)  # fmt: skip
def test_any_content_is_an_order_or_a_clear_error(content: dict[str, Any]) -> None:
    try:
        order = FaultOrder.from_json(content)
    except SageError:
        return
    assert order.fault.kind == content["kind"]
    assert order.at_s >= 0


def test_a_plan_takes_faults_in_order_and_by_chance() -> None:
    plan = FaultPlan(seed=3)
    assert plan.take() is None
    plan.add(Fault("kill", count=2))
    plan.add(Fault("hang", count=None, probability=0.25))
    kinds = [fault.kind if (fault := plan.take()) else "" for _ in range(402)]
    assert kinds[:2] == ["kill", "kill"]
    assert 60 < kinds.count("hang") < 140
    assert len(plan.waiting()) == 1
    plan.clear()
    assert plan.take() is None


# -- single answers -----------------------------------------------------------------------


def struck(virtually: Virtually, body: dict[str, Any], path: str = CHAT, **fault: Any) -> Answer:
    """The answer that a fault befalls; what the engine did goes on as it should."""

    async def main() -> Answer:
        async with mock_server() as server:
            ordered = await call(server.control_port, "POST", "/engines/0/faults", fault)
            assert ordered.status == 200, ordered.body
            async with Caller(server.ports[0]) as caller:
                await caller.send("POST", path, body)
                try:
                    answer = await asyncio.wait_for(caller.receive(), 30)
                except asyncio.TimeoutError:
                    answer = Answer()
                    answer.body = b"nothing"
            healthy = await call(server.ports[0], "POST", CHAT, chat())
            assert healthy.complete, "a fault of one answer befell the next"
            assert server.engines[0].books.outcomes() == {"fault": 1, "done": 1}
            assert server.engines[0].llm.running == 0
            return answer

    answer = virtually(main())
    assert isinstance(answer, Answer)
    return answer


def is_json(answer: Answer) -> bool:
    try:
        answer.json()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_a_status(virtually: Virtually, stream: bool) -> None:
    answer = struck(virtually, chat(stream=stream), kind="status", status=429, retry_after=7)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["code"] == 429


def test_a_kill_before_the_head(virtually: Virtually) -> None:
    answer = struck(virtually, chat(), kind="kill")
    assert (answer.status, answer.complete) == (0, False)


@pytest.mark.parametrize("kind", ["kill", "truncate"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_breaks_off(virtually: Virtually, kind: str, stream: bool) -> None:
    answer = struck(virtually, chat(stream=stream), kind=kind, after_bytes=300)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.ended_s < 1


def test_an_answer_that_hangs(virtually: Virtually) -> None:
    for after_bytes in (0, 300):
        answer = struck(virtually, chat(), kind="hang", after_bytes=after_bytes)
        assert answer.body == b"nothing"


def test_garbage(virtually: Virtually) -> None:
    assert not struck(virtually, chat(), kind="garbage").complete


def test_an_event_that_is_none(virtually: Virtually) -> None:
    answer = struck(virtually, chat(), kind="garbage_event", after_bytes=300)
    assert b"this is no event" in answer.body
    whole = struck(virtually, chat(stream=False), kind="garbage_event")
    assert whole.complete
    assert not is_json(whole)


@pytest.mark.parametrize("extra", [10, -10])
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_length(virtually: Virtually, extra: int, stream: bool) -> None:
    answer = struck(virtually, chat(stream=stream), kind="wrong_length", extra=extra)
    assert answer.status == 200
    if extra > 0 or stream:
        assert not answer.complete
    else:
        assert not is_json(answer)


# -- whole engines ------------------------------------------------------------------------


def test_a_crash_loses_everything_and_the_engine_comes_back_cold(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server(count=2) as server:
            port, other = server.ports
            calls = [
                asyncio.create_task(call(port, "POST", CHAT, chat(output_tokens=100))),
                asyncio.create_task(
                    call(port, "POST", EMBEDDINGS, {"model": "mock", "input": "a " * 999})
                ),
                asyncio.create_task(call(other, "POST", CHAT, chat(output_tokens=100))),
            ]
            await asyncio.sleep(0.1)
            server.order(FaultOrder.parse("crash,engine=0,seconds=2,cold_s=3"))
            lost, embedding, kept = await asyncio.gather(*calls)
            assert (lost.status, lost.complete, embedding.status) == (200, False, 0)
            assert kept.complete
            assert server.engines[0].books.outcomes() == {"lost": 2}
            with pytest.raises(ConnectionRefusedError):
                await call(port, "GET", "/health")
            await asyncio.sleep(2)
            assert (await call(port, "GET", "/health")).status == 503
            assert (await call(port, "POST", CHAT, chat())).status == 503
            await asyncio.sleep(3)
            assert (await call(port, "POST", CHAT, chat())).complete

    virtually(main())


def test_a_half_open_engine_says_nothing_and_takes_connections(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            port, engine = server.ports[0], server.engines[0]
            began = asyncio.get_running_loop().time()
            running = asyncio.create_task(call(port, "POST", CHAT, chat(output_tokens=100)))
            await asyncio.sleep(0.1)
            server.order(FaultOrder.parse("half_open,seconds=5,cold_s=1"))
            new = asyncio.create_task(call(port, "POST", CHAT, chat()))
            async with Caller(port):
                await asyncio.sleep(1)
            await asyncio.sleep(1)
            assert not running.done()
            assert not new.done()
            assert engine.state()["connections"] == 3, "it noticed that a client has gone"
            answers = await asyncio.gather(running, new)
            assert asyncio.get_running_loop().time() - began == pytest.approx(5.1, abs=0.01)
            assert [answer.complete for answer in answers] == [False, False]
            assert engine.books.outcomes() == {"lost": 1}
            assert (await call(port, "GET", "/health")).status == 503
            await asyncio.sleep(1)
            assert (await call(port, "POST", CHAT, chat())).complete

    virtually(main())


def test_a_stall_a_slow_down_and_refusals(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            port = server.ports[0]

            async def times(order: str) -> list[float]:
                server.order(FaultOrder.parse(order))
                return (await call(port, "POST", CHAT, chat(chat_id=order))).token_times()

            assert await times("stall,seconds=2") == pytest.approx(
                [2.011, 2.021, 2.031, 2.041], abs=0.006
            )
            slow = await times("slow,factor=3,seconds=0.05")
            assert slow[1] - slow[0] == pytest.approx(0.030)
            await asyncio.sleep(1)
            running = asyncio.create_task(call(port, "POST", CHAT, chat(output_tokens=100)))
            await asyncio.sleep(0.1)
            server.order(FaultOrder.parse("refuse,seconds=1"))
            assert (await call(port, "POST", CHAT, chat())).status == 503
            assert (await call(port, "GET", "/health")).status == 200
            assert (await running).complete
            await asyncio.sleep(1)
            usual = (await call(port, "POST", CHAT, chat())).token_times()
            assert usual[1] - usual[0] == pytest.approx(0.010)
            server.order(FaultOrder.parse("slow,factor=5"))
            body = {"model": "mock", "input": "a"}
            assert (await call(port, "POST", EMBEDDINGS, body)).ended_s == pytest.approx(0.025)

    virtually(main())


def test_orders_for_later_and_for_all(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server(count=2, time_scale=10.0) as server:
            server.order(FaultOrder.parse("cold,at_s=20,seconds=10"))

            async def statuses() -> list[int]:
                return [(await call(port, "GET", "/health")).status for port in server.ports]

            assert await statuses() == [200, 200]
            await asyncio.sleep(2.5)
            assert await statuses() == [503, 503]
            await asyncio.sleep(1)
            assert await statuses() == [200, 200]
            with pytest.raises(BenchmarkError, match="no engine 2"):
                server.order(FaultOrder.parse("crash,engine=2"))
            server.order(FaultOrder.parse("crash,at_s=1000"))  # never comes

    virtually(main())


def test_the_control_port(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server(count=2) as server:
            port = server.control_port
            await call(server.ports[1], "POST", CHAT, chat(), x_request_id="mine")
            states = (await call(port, "GET", "/engines")).json()
            assert [state["requests"] for state in states] == [0, 1]
            assert states[1]["url"] == server.describe()["engines"][1]["url"]
            [record] = (await call(port, "GET", "/engines/1/requests")).json()
            assert record["request_id"] == "mine"
            assert (record["outcome"], record["generated"]) == ("done", 4)
            posted = await call(port, "POST", "/engines/1/faults", {"kind": "hang"})
            assert posted.json()["faults"] == 1
            cleared = await call(port, "DELETE", "/engines/1/faults")
            assert cleared.json()["faults"] == 0
            everywhere = await call(port, "POST", "/faults", {"kind": "hang"})
            assert [state["faults"] for state in everywhere.json()] == [1, 1]
            for method, path, body in (
                ("GET", "/", b""),
                ("GET", "/engines/2/requests", b""),
                ("GET", "/engines/x/requests", b""),
                ("PUT", "/engines/0/faults", b""),
                ("POST", "/engines/0/faults", b"{"),
                ("POST", "/engines/0/faults", b"[]"),
                ("POST", "/faults", b'{"kind": "crash", "engine": 7}'),
            ):
                answer = await call(port, method, path, body)
                assert answer.status == 400, path
                assert answer.json()["error"]

    virtually(main())
