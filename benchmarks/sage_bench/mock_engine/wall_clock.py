"""The simulator's LLM engine in real time: tokens leave at the borders of its steps.

The engine's times are absolute, so a timer that fires late delays a token and never the engine.
"""

from __future__ import annotations

import math
from typing import Protocol

from sage_bench.mock_engine.virtual_time import Alarm, EngineTime
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.sequence import Sequence


class Listener(Protocol):
    """Hears of one sequence."""

    streams: bool
    """Wants every token; otherwise only first and last."""

    def tokens(self, count: int, at: float) -> None:
        """``count`` tokens are generated; the engine did it at ``at``."""

    def finished(self, at: float) -> None:
        """All tokens are."""

    def lost(self) -> None:
        """The engine crashed."""


class StepObserver(Protocol):
    """Hears of the engine's steps, for metrics."""

    def steps(self, count: int, seconds: float, prefilled: int, decoding: int) -> None:
        """``count`` steps took ``seconds``; the first computed ``prefilled`` prompt tokens, and
        ``decoding`` sequences got a token in each."""


class WallClockEngine:
    """Drives one engine in an event loop.

    Args:
        engine: the model.
        time_: engine time.
        observer: told of steps as far as the driver wakes for them.
    """

    def __init__(self, engine: LlmEngine, time_: EngineTime, observer: StepObserver) -> None:
        self.engine = engine
        self._time = time_
        self._observer = observer
        self._alarm = Alarm(time_, self._wake)
        self._listeners: dict[Sequence, Listener] = {}
        self._streams: dict[Sequence, Listener] = {}
        self._now = 0.0
        self._steps = 0
        self._stepped_at = 0.0
        self._prefilled = 0

    @property
    def inside(self) -> int:
        """Requests whose client waits."""
        return len(self._listeners)

    @property
    def lateness_s(self) -> float:
        """How late the last wake-up was, in engine seconds."""
        return self._alarm.lateness_s

    def submit(self, sequence: Sequence, listener: Listener) -> None:
        """Take a request in.

        Raises:
            BenchmarkError: it can never fit into the engine.
        """
        now = self._catch_up()
        self.engine.submit(sequence, now)
        self._listeners[sequence] = listener
        if listener.streams:
            self._streams[sequence] = listener
        self._arm(now)

    def abort(self, sequence: Sequence) -> None:
        """Its client has gone."""
        if self._listeners.pop(sequence, None) is None:
            return
        self._streams.pop(sequence, None)
        now = self._catch_up()
        self.engine.abort(sequence, now)
        self._arm(now)

    def slow(self, factor: float) -> None:
        """Every step takes ``factor`` times as long from now on; 1: as usual."""
        now = self._catch_up()
        self.engine.set_stretch(factor, now)
        self._arm(now)

    def stall(self, seconds: float) -> None:
        """No step starts for so long."""
        now = self._catch_up()
        self.engine.hold(now + seconds, now)
        self._arm(now)

    def crash(self) -> None:
        """Lose everything."""
        self.engine.crash()
        lost = list(self._listeners.values())
        self._listeners.clear()
        self._streams.clear()
        self._alarm.set(math.inf)
        for listener in lost:
            listener.lost()

    def close(self) -> None:
        """Wake no more."""
        self._alarm.set(math.inf)

    # -- inside ---------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        self._arm(self._catch_up(now))

    def _catch_up(self, now: float | None = None) -> float:
        """Let the engine come to the present and tell the listeners; the present."""
        now = self._now = max(self._now, self._time.now() if now is None else now)
        engine = self.engine
        decoding, prefilled = engine.decoding, engine.prefilled_tokens
        emissions = engine.advance(now)
        steps = engine.steps(now)
        if steps != self._steps:
            border = emissions[-1].at if emissions else engine.last_step_at(now)
            self._observe(steps, border, prefilled, decoding)
            for sequence, listener in self._streams.items():
                count = sequence.generated_by(steps)
                if count:
                    listener.tokens(count, border)
        for emission in emissions:
            sequence = emission.sequence
            told = self._listeners.get(sequence)
            if told is None:
                continue  # its client has gone
            if emission.finished:
                del self._listeners[sequence]
                self._streams.pop(sequence, None)
                told.tokens(sequence.output, emission.at)
                told.finished(emission.at)
            elif not told.streams:
                told.tokens(1, emission.at)
        return now

    def _observe(self, steps: int, border: float, prefilled: int, decoding: int) -> None:
        self._observer.steps(
            steps - self._steps, border - self._stepped_at, prefilled - self._prefilled, decoding
        )
        self._steps, self._stepped_at, self._prefilled = steps, border, prefilled

    def _arm(self, now: float) -> None:
        engine = self.engine
        self._alarm.set(engine.next_step_at(now) if self._streams else engine.next_at)
