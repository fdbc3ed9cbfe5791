"""A run of steps with a constant batch, in closed form.

Step i (from 0) takes ``first_s + i*growth_s`` seconds, so k steps take
``k*first_s + growth_s*k(k-1)/2``; the border at or after a given time comes from the quadratic.
"""

from __future__ import annotations

import math


class StepSegment:
    """``steps`` steps from ``at`` on.

    Args:
        at: when the first begins.
        first_s: length of the first step, above 0.
        growth_s: how much longer each step is than the one before it.
        steps: how many, at least 1.
    """

    __slots__ = ("at", "end", "first_s", "growth_s", "steps")

    def __init__(self, at: float, first_s: float, growth_s: float, steps: int) -> None:
        self.at = at
        self.first_s = first_s
        self.growth_s = growth_s
        self.steps = steps
        self.end = self.border(steps)

    @property
    def longest_s(self) -> float:
        """Length of the last step."""
        return self.first_s + self.growth_s * (self.steps - 1)

    def border(self, steps: int) -> float:
        """When ``steps`` steps have ended."""
        return self.at + (steps * self.first_s + self.growth_s * (steps * (steps - 1) / 2))

    def steps_by(self, now: float) -> int:
        """Steps that have ended by ``now``."""
        if now >= self.end:
            return self.steps
        steps = self._first_border_from(now)
        return steps if self.border(steps) <= now else steps - 1

    def cut(self, now: float) -> None:
        """End with the first step whose border is at ``now`` or later."""
        if self.steps > 1 and now < self.end:
            self.steps = self._first_border_from(now)
            self.end = self.border(self.steps)

    def _first_border_from(self, now: float) -> int:
        elapsed = max(0.0, now - self.at)
        if self.growth_s > 0:
            linear = self.first_s - self.growth_s / 2
            root = math.sqrt(linear * linear + 2 * self.growth_s * elapsed)
            steps = math.ceil((root - linear) / self.growth_s)
        else:
            steps = math.ceil(elapsed / self.first_s)
        steps = min(max(1, steps), self.steps)
        # The root is rounded; the borders decide.
        while steps > 1 and self.border(steps - 1) >= now:
            steps -= 1
        while steps < self.steps and self.border(steps) < now:
            steps += 1
        return steps
