"""The simulator's embedding engine under the wall clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from sage_bench.simulation.embedding_engine import EmbeddingCall, EmbeddingEngine


class PoolingClock:
    """Drives one embedding engine in an event loop.

    Args:
        engine: the model; its times are absolute, so a late timer delays only answers.
        clock: monotonic seconds.
    """

    def __init__(self, engine: EmbeddingEngine, clock: Callable[[], float]) -> None:
        self.engine = engine
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: dict[EmbeddingCall, Callable[[bool], None]] = {}

    @property
    def inside(self) -> int:
        """Calls whose client waits."""
        return len(self._waiters)

    def submit(self, call: EmbeddingCall, ended: Callable[[bool], None]) -> None:
        """Take a call in. ``ended`` hears once: True: served; False: lost in a crash."""
        now = self._catch_up()
        self._waiters[call] = ended
        self.engine.submit(call, now)
        self._arm(now)

    def abort(self, call: EmbeddingCall) -> None:
        """Its client has gone: it is skipped in the line; in work it ends unheard."""
        if self._waiters.pop(call, None) is not None:
            self.engine.abort(call)

    def slow(self, factor: float) -> None:
        """Batches that start from now on take ``factor`` times as long; 1: as usual."""
        self._catch_up()
        self.engine.stretch = factor
        self._arm(self._clock())

    def stall(self, seconds: float) -> None:
        """No batch starts for so long."""
        now = self._catch_up()
        self.engine.hold(now + seconds)
        self._arm(now)

    def crash(self) -> None:
        """Lose everything."""
        self.engine.crash()
        lost = list(self._waiters.values())
        self._waiters.clear()
        self._arm(self._clock())
        for ended in lost:
            ended(False)

    def close(self) -> None:
        """Wake no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        self._arm(self._catch_up())

    def _catch_up(self) -> float:
        now = self._clock()
        for answer in self.engine.advance(now):
            ended = self._waiters.pop(answer.call, None)
            if ended is not None:
                ended(True)
        return now

    def _arm(self, now: float) -> None:
        self.close()
        if self.engine.next_at < math.inf:
            wait_s = max(0.0, self.engine.next_at - now)
            self._timer = self._loop.call_later(wait_s, self._wake)
