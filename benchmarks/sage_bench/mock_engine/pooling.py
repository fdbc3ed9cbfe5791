"""The simulator's embedding engine in real time."""

from __future__ import annotations

import math
from collections.abc import Callable

from sage_bench.mock_engine.virtual_time import Alarm, EngineTime
from sage_bench.simulation.embedding_engine import EmbeddingCall, EmbeddingEngine


class PoolingClock:
    """Drives one embedding engine in an event loop.

    Args:
        engine: the model; its times are absolute, so a late timer delays only answers.
        time_: engine time.
    """

    def __init__(self, engine: EmbeddingEngine, time_: EngineTime) -> None:
        self.engine = engine
        self._time = time_
        self._now = 0.0
        self._alarm = Alarm(time_, self._wake)
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
        self._arm()

    def abort(self, call: EmbeddingCall) -> None:
        """Its client has gone: it is skipped in the line; in work it ends unheard."""
        if self._waiters.pop(call, None) is not None:
            self.engine.abort(call)

    def slow(self, factor: float) -> None:
        """Batches that start from now on take ``factor`` times as long; 1: as usual."""
        self._catch_up()
        self.engine.stretch = factor
        self._arm()

    def stall(self, seconds: float) -> None:
        """No batch starts for so long."""
        self.engine.hold(self._catch_up() + seconds)
        self._arm()

    def crash(self) -> None:
        """Lose everything."""
        self.engine.crash()
        lost = list(self._waiters.values())
        self._waiters.clear()
        self._alarm.set(math.inf)
        for ended in lost:
            ended(False)

    def close(self) -> None:
        """Wake no more."""
        self._alarm.set(math.inf)

    # -- inside ---------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        self._catch_up(now)
        self._arm()

    def _catch_up(self, now: float | None = None) -> float:
        now = self._now = max(self._now, self._time.now() if now is None else now)
        for answer in self.engine.advance(now):
            ended = self._waiters.pop(answer.call, None)
            if ended is not None:
                ended(True)
        return now

    def _arm(self) -> None:
        self._alarm.set(self.engine.next_at)
