"""Inline tasks: resumed by what they waited for, never inside it, never twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_gateway.inline_task import InlineTask, Turn, Waiter, turn_of, waiter


def turn() -> Turn:
    return turn_of(asyncio.get_running_loop())


def start(coroutine: Any) -> tuple[InlineTask, list[str]]:
    ended: list[str] = []
    task = InlineTask(turn(), coroutine, lambda: ended.append("ended"))
    task.step()
    return task, ended


async def test_who_is_woken_in_a_callback_runs_when_it_ends() -> None:
    waits: list[Waiter] = []
    seen: list[str] = []

    async def work() -> None:
        waits.append(waiter(turn()))
        await waits[0]
        seen.append("woken")

    task, ended = start(work())
    turn().enter()
    waits[0].set_result(None)
    seen.append("callback goes on")
    turn().leave()
    assert seen == ["callback goes on", "woken"]
    assert (task.done, ended) == (True, ["ended"])


async def test_who_is_woken_outside_a_callback_runs_in_the_next_turn() -> None:
    waits: list[Waiter] = []

    async def work() -> None:
        waits.append(waiter(turn()))
        await waits[0]

    task, _ = start(work())
    waits[0].set_result(None)
    assert not task.done
    await asyncio.sleep(0)
    assert task.done


async def test_a_future_of_asyncio_can_be_awaited() -> None:
    future = asyncio.get_running_loop().create_future()
    got: list[int] = []

    async def work() -> None:
        got.append(await future)

    task, _ = start(work())
    task.wake()  # without cause: it goes on waiting
    await asyncio.sleep(0)
    assert not task.done
    future.set_result(7)
    await asyncio.sleep(0)
    assert (got, task.done) == ([7], True)


@pytest.mark.parametrize("waits_for_future", [False, True])
async def test_cancelling_raises_where_it_waits(waits_for_future: bool) -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    async def work() -> None:
        try:
            await (loop.create_future() if waits_for_future else waiter(turn()))
        except asyncio.CancelledError:
            seen.append("cancelled")

    task, ended = start(work())
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (seen, ended, task.done) == (["cancelled"], ["ended"], True)


async def test_a_failure_that_escapes_reaches_the_loop() -> None:
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))

    async def work() -> None:
        raise ZeroDivisionError

    task, ended = start(work())
    assert (task.done, ended) == (True, ["ended"])
    assert [type(error) for error in told] == [ZeroDivisionError]


async def test_outside_inline_tasks_a_waiter_is_a_future() -> None:
    assert isinstance(waiter(turn()), asyncio.Future)
