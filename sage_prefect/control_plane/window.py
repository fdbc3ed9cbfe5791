"""How many requests one engine may hold: a window for all, a smaller one for batch work.

Additive increase while full and clean, multiplicative decrease when the measured p95 nears the
promise. Latency is judged by time per token and time to first token, never by the whole answer's
time, which its length dominates (a gradient on that would throttle a healthy engine).
"""

from __future__ import annotations

from dataclasses import dataclass

START, COLD, FLOOR = 16, 8, 4
PERIOD_S = 2.0
MIN_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class WindowRules:
    """Constants of the control loop."""

    batch_decrease: float = 0.8
    batch_increase: int = 2
    increase: int = 3
    high_tpot: float = 1.0
    """p95 of time per token over the promise: above it the window shrinks."""
    batch_high_tpot: float = 0.95
    batch_high_ttft: float = 0.80
    gate: float = 0.85
    """Share of the tightest promise that batch work may bring time per token to, at first."""
    gate_low: float = 0.6
    gate_high: float = 0.97
    gate_down: float = 0.04
    gate_up: float = 0.005
    """Per turn: a breach is remembered for minutes, so that the next burst finds room."""


class Window:
    """The windows of one engine.

    Args:
        ceiling: the engine's own limit on concurrent requests.
        cold: begin small and double while all is well.
    """

    __slots__ = (
        "_tpot", "_ttft", "batch", "ceiling", "full", "full_batch", "gate", "late", "next_at",
        "rules", "size", "slow_start",
    )  # fmt: skip

    def __init__(self, ceiling: int, rules: WindowRules, *, cold: bool = False) -> None:
        self.ceiling = max(1, ceiling)
        self.rules = rules
        self.size = min(self.ceiling, COLD) if cold else self.ceiling
        self.batch = min(self.size, START)
        self.gate = rules.gate
        self.slow_start = cold
        self.next_at = 0.0
        self.full = self.full_batch = False
        self.late = False
        """Whether latency requests missed their promises (p95) when it was last looked at."""
        # Measured over promised, of latency requests since the last turn.
        self._tpot: list[float] = []
        self._ttft: list[float] = []

    def saw_tpot(self, share: float) -> None:
        """A latency request's time per token over its promise."""
        self._tpot.append(share)

    def saw_ttft(self, share: float) -> None:
        """A latency request's time to first token over its promise."""
        self._ttft.append(share)

    def preempted(self) -> None:
        """The engine had to give up running requests: it holds too much."""
        self._shrink(int(self.size * 0.9))

    def limit(self, ceiling: int) -> None:
        """The engine's own limit on concurrent requests is (perhaps) another one."""
        self.ceiling = max(1, ceiling)
        self._shrink(self.size)

    def refused(self, running: int) -> None:
        """The engine refused a request beside so many: it holds fewer than was believed."""
        self.size = max(1, min(self.size, int(0.9 * running)))
        self.slow_start = False

    def turn(self, now: float, batch: int = 0, running: int = 0) -> None:
        """Adapt, at most every ``PERIOD_S`` and after enough samples or twice that time.

        Args:
            batch: batch requests inside: they give way first.
            running: all requests inside: while they are more than the window, it has not acted yet.
        """
        if now < self.next_at:
            return
        samples = len(self._tpot) + len(self._ttft)
        if 0 < samples < MIN_SAMPLES and now < self.next_at + PERIOD_S:
            return
        rules = self.rules
        tpot, ttft = _p95(self._tpot), _p95(self._ttft)
        self.late = tpot > 1.0 or ttft > 1.0
        if tpot > rules.high_tpot and not batch:
            if running <= self.size:
                self._shrink(int(self.size * max(0.8, rules.high_tpot / tpot)))
            self.slow_start = False
        elif self.full or not samples:
            # Where nothing is promised, nothing holds it back.
            step = self.size if self.slow_start or not samples else rules.increase
            self.size = min(self.ceiling, self.size + step)
        if tpot > rules.batch_high_tpot or ttft > rules.batch_high_ttft:
            self.batch = max(1, int(self.batch * rules.batch_decrease))
            if self.late:
                self.gate = max(rules.gate_low, self.gate - rules.gate_down)
        else:
            if self.full_batch:
                self.batch = min(self.size, self.batch + rules.batch_increase)
            if samples:
                self.gate = min(rules.gate_high, self.gate + rules.gate_up)
        self.full = self.full_batch = False
        self._tpot.clear()
        self._ttft.clear()
        self.next_at = now + PERIOD_S

    def _shrink(self, size: int) -> None:
        self.size = min(self.ceiling, max(FLOOR, size))
        self.batch = min(self.batch, self.size)


def _p95(values: list[float]) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
