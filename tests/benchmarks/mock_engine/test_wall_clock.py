"""The engine model in real time: late timers, and what follows from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sage_bench.mock_engine.virtual_time import Alarm, EngineTime

from .conftest import call, chat, mock_server

Virtually = Callable[[Any], Any]


def test_a_late_process_delays_tokens_and_never_the_engine(virtually: Virtually) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        def busy() -> None:
            loop.selector.now += 0.5  # somebody computes for half a second

        async with mock_server() as server:
            loop.call_later(0.020, busy)
            answer = await call(server.ports[0], "POST", "/v1/chat/completions", chat(5, 100))
            times = answer.token_times()
            assert times[0] == pytest.approx(0.015)
            # Made at 0.025, 0.035 ... 0.515, sent when the process woke up.
            late = [time for time in times if time == pytest.approx(0.520)]
            assert len(late) == 50
            assert times[51] == pytest.approx(0.525)
            assert answer.ended_s == pytest.approx(0.015 + 99 * 0.010)

    virtually(main())


def test_an_alarm_can_be_moved_and_never_rings_early(virtually: Virtually) -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        time = EngineTime(4.0, clock)
        rung: list[float] = []
        alarm = Alarm(time, rung.append)
        alarm.set(8.0)
        alarm.set(2.0)
        await asyncio.sleep(1)
        assert rung == [pytest.approx(2.0)]
        assert rung[0] >= 2.0
        alarm.set(6.0)
        alarm.set(6.0)
        alarm.set(float("inf"))
        await asyncio.sleep(10)
        assert len(rung) == 1
        alarm.set(1.0)  # past
        await asyncio.sleep(0.1)
        assert rung[1] >= 44.0
        assert alarm.lateness_s >= 43.0
        assert time.now() == pytest.approx(44.4)

    virtually(main())
