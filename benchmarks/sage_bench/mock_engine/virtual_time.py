"""Engine time under the event loop: seconds of the model, at a chosen speed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from sage_prefect.common.errors import BenchmarkError

Clock = Callable[[], float]


class EngineTime:
    """The time that engines live by. Belongs to one event loop.

    Args:
        scale: engine seconds per second of the clock; 10: a minute of engine time in six seconds.
        clock: monotonic seconds.

    Raises:
        BenchmarkError: the scale is not in (0, 1000].
    """

    def __init__(self, scale: float = 1.0, clock: Clock = time.monotonic) -> None:
        if not 0 < scale <= 1000:
            raise BenchmarkError(f"time scale {scale} is not in (0, 1000].")
        self.scale = scale
        self._clock = clock
        self._origin = clock()
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        """Engine seconds since this object was made."""
        return (self._clock() - self._origin) * self.scale

    def call_at(self, at: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call when the engine time ``at`` has come."""
        return self._loop.call_later(max(0.0, at - self.now()) / self.scale, call)


class Alarm:
    """One wake-up that can be moved.

    Args:
        time_: engine time.
        ring: called when it is due, with the engine time: never before what was set, though
            event loops round their timers.
    """

    __slots__ = ("_due", "_handle", "_ring", "_time", "lateness_s")

    def __init__(self, time_: EngineTime, ring: Callable[[float], None]) -> None:
        self.lateness_s = 0.0
        """How late the last one was, in engine seconds: the process is short of CPU when it
        grows."""
        self._time, self._ring = time_, ring
        self._due = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """Ring at ``due`` and not at any time set before; inf: not at all."""
        if self._handle is not None:
            if due == self._due:
                return
            self._handle.cancel()
            self._handle = None
        self._due = due
        if due < math.inf:
            self._handle = self._time.call_at(due, self._wake)

    def _wake(self) -> None:
        self._handle = None
        now = max(self._due, self._time.now())
        self.lateness_s = now - self._due
        self._ring(now)
