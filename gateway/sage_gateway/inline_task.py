"""Coroutines that run on without a turn of the event loop: what they waited for resumes them.

An ``asyncio.Task`` costs a turn of the loop, a handle and a future for its start and for each wait.
A request waits a few times for bytes that a protocol's callback brings; here that callback resumes
it, when it has done its own work: never inside it, so that no state machine is entered twice.

Inside an :class:`InlineTask`, :func:`waiter` gives what its coroutine awaits. A task may be woken
without cause: who waits looks again. Futures of asyncio can be awaited too; what needs
``asyncio.current_task`` (``timeout``, ``TaskGroup``) belongs into a real task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Union, cast


class Turn:
    """The callback of an event loop that is under way, and who is to run when it ends.

    One per loop: :func:`turn_of`. A callback that may wake tasks calls :meth:`enter` first and
    :meth:`leave` last, in a ``finally``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.current: InlineTask | None = None
        self.depth = 0
        self.ready: deque[InlineTask] = deque()
        self.armed = False

    def enter(self) -> None:
        """A callback begins; tasks that it wakes run in :meth:`leave`."""
        self.depth += 1

    def leave(self) -> None:
        """It ends: run who was woken."""
        if self.depth == 1 and self.ready:
            ready = self.ready
            try:
                while ready:
                    ready.popleft().step()
            finally:
                self.depth = 0
        else:
            self.depth -= 1

    def wake(self, task: InlineTask) -> None:
        """Run ``task`` when the present callback ends, or in the loop's next turn."""
        self.ready.append(task)
        if not self.depth and not self.armed:
            self.armed = True
            self.loop.call_soon(self._run_ready)

    def _run_ready(self) -> None:
        self.armed = False
        self.enter()
        self.leave()


_turns: list[Turn] = []


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    """The turn of ``loop``; to be kept by who needs it often."""
    for turn in _turns:
        if turn.loop is loop:
            return turn
    _turns[:] = [turn for turn in _turns if not turn.loop.is_closed()]
    turn = Turn(loop)
    _turns.append(turn)
    return turn


class Pause:
    """Something that one inline task waits for; ``set_result`` lets it go on."""

    __slots__ = ("_is_over", "_task")

    def __init__(self, task: InlineTask) -> None:
        self._task = task
        self._is_over = False

    def done(self) -> bool:
        return self._is_over

    def set_result(self, result: None) -> None:
        """Wake the task, once."""
        if not self._is_over:
            self._is_over = True
            self._task.wake()

    # Its own iterator: one object less than a generator for each wait.

    def __await__(self) -> Generator[Any, None, None]:
        return cast("Generator[Any, None, None]", self)

    def __iter__(self) -> Pause:
        return self

    def __next__(self) -> Pause:
        if self._is_over:
            raise StopIteration
        return self


Waiter = Union["asyncio.Future[None]", Pause]


def waiter(turn: Turn) -> Waiter:
    """What the running coroutine can await: a :class:`Pause`, or a future outside inline tasks."""
    current = turn.current
    return turn.loop.create_future() if current is None else Pause(current)


class InlineTask:
    """Runs a coroutine from :meth:`step` to :meth:`step`.

    Args:
        turn: of the running loop.
        coroutine: reports its own failures; one that escapes goes to the loop's exception handler.
        on_done: called when it has ended, however it did.
    """

    __slots__ = ("_cancelled", "_coroutine", "_future", "_on_done", "_turn")

    def __init__(
        self,
        turn: Turn,
        coroutine: Coroutine[Any, None, None],
        on_done: Callable[[], None],
    ) -> None:
        self._turn = turn
        self._coroutine: Coroutine[Any, None, None] | None = coroutine
        self._on_done = on_done
        self._future: asyncio.Future[Any] | None = None
        self._cancelled = False

    @property
    def done(self) -> bool:
        return self._coroutine is None

    def cancel(self) -> None:
        """Raise ``CancelledError`` where the coroutine waits."""
        if self._coroutine is None or self._cancelled:
            return
        self._cancelled = True
        if self._future is None or not self._future.cancel():
            self.wake()

    def wake(self) -> None:
        """Run on: when the present callback ends, or in the loop's next turn."""
        self._turn.wake(self)

    def step(self) -> None:
        """Run up to the next wait."""
        coroutine = self._coroutine
        future = self._future
        if coroutine is None or (future is not None and not future.done()):
            return  # woken twice: what it did after the first time decides
        turn = self._turn
        before, turn.current = turn.current, self
        turn.depth += 1
        try:
            if self._cancelled and self._future is None:
                self._cancelled = False
                awaited = coroutine.throw(asyncio.CancelledError())
            else:
                self._future = None
                awaited = coroutine.send(None)
        except StopIteration:
            self._finish()
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told to the loop
            self._finish()
            turn.loop.call_exception_handler(
                {"message": "an inline task failed", "exception": error}
            )
            return
        finally:
            turn.current = before
            turn.depth -= 1
        if not isinstance(awaited, Pause):
            self._wait_for(awaited)

    def _wait_for(self, future: asyncio.Future[Any]) -> None:
        # The mark by which asyncio tells `await` from a plain `yield`.
        future._asyncio_future_blocking = False
        self._future = future
        future.add_done_callback(self._on_future)

    def _on_future(self, future: asyncio.Future[Any]) -> None:
        turn = self._turn
        turn.enter()
        try:
            turn.ready.append(self)
        finally:
            turn.leave()

    def _finish(self) -> None:
        self._coroutine = None
        self._on_done()
