"""What only hindsight tells: when embedding calls will come, and what to lend them when.

The plan is made before the run from the very calls that will come: how many accelerators the
embedding calls have to themselves at each time, and which share of the next one they get. The
accelerators of the lowest numbers are lent first, so that each knows when its turn comes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from sage_bench.simulation.step_profile import EmbeddingProfile

CELL_S = 0.5
BEFORE_S = 8.0
"""What calls came so long before is evened out."""
SHARE = 0.5
"""Of an accelerator, what each side gets while both are busy."""
LEAST = 0.03
"""Share of the accelerator that is shared that calls get in any case."""
STEADY_S = 5.0
"""A change that lasts shorter is none."""


@dataclass(frozen=True)
class Future:
    """The embedding calls of a run: (seconds, lengths of the inputs) in order of time."""

    calls: tuple[tuple[float, tuple[int, ...]], ...]

    def demand(self, profile: EmbeddingProfile, until_s: float, ahead_s: float) -> list[float]:
        """Engine-seconds per second that were asked for in ``BEFORE_S`` or will be within
        ``ahead_s``, whichever is more; per ``CELL_S``."""
        cells = [0.0] * (math.ceil(until_s / CELL_S) + 1)
        for at, lengths in self.calls:
            cells[min(len(cells) - 1, int(at / CELL_S))] += profile.service_s(lengths)
        sums = [0.0]
        for value in cells:
            sums.append(sums[-1] + value)
        before, after = int(BEFORE_S / CELL_S), max(1, int(ahead_s / CELL_S))
        found = []
        for i in range(len(cells)):
            low, here, high = max(0, i - before), i + 1, min(len(cells), i + after)
            past = (sums[here] - sums[low]) / ((here - low) * CELL_S)
            coming = (sums[high] - sums[i]) / (max(1, high - i) * CELL_S)
            found.append(max(past, coming))
        return found


class LendingPlan:
    """What each accelerator, by number, gives to embedding calls at each time.

    Args:
        demand: engine-seconds per second, per ``CELL_S``.
        accelerators: how many there are; one is never lent.
        round_up: a fraction above ``1 - round_up`` is lent a whole one.
        pace: calls get so many times the share that they need of the accelerator that is shared.
    """

    def __init__(
        self, demand: list[float], accelerators: int, round_up: float, pace: float
    ) -> None:
        counts = [min(accelerators - 1, math.floor(load + round_up)) for load in demand]
        counts = _steady(counts, int(STEADY_S / CELL_S))
        self._counts = counts
        self._shares = [
            min(1.0, pace * max(0.0, load - count) + LEAST)
            for load, count in zip(demand, counts, strict=True)
        ]
        self._changes = [
            [i * CELL_S for i in range(1, len(counts)) if (counts[i] > n) != (counts[i - 1] > n)]
            for n in range(accelerators)
        ]

    def lent(self, number: int, now: float) -> bool:
        """Whether the accelerator is lent whole."""
        return number < self._counts[self._cell(now)]

    def share(self, number: int, now: float) -> float:
        """What embedding calls get of it beside LLM requests, 0 to 1."""
        cell = self._cell(now)
        if number < self._counts[cell]:
            return 1.0
        return self._shares[cell] if number == self._counts[cell] else 0.0

    def lent_at(self, number: int, now: float) -> float:
        """When it is lent next, or now; infinity: never again."""
        if self.lent(number, now):
            return now
        changes = self._changes[number]
        at = bisect.bisect_right(changes, now)
        return changes[at] if at < len(changes) else math.inf

    def stretch(self, number: int, now: float) -> float:
        """By how much embedding calls slow an LLM engine on it down."""
        return 1.0 / (1.0 - min(SHARE, self.share(number, now)))

    def _cell(self, now: float) -> int:
        return min(len(self._counts) - 1, max(0, int(now / CELL_S)))


def _steady(counts: Iterable[int], least: int) -> list[int]:
    """Runs of equal counts shorter than ``least`` take the count before them."""
    steady: list[int] = []
    values = list(counts)
    i = 0
    while i < len(values):
        j = i
        while j < len(values) and values[j] == values[i]:
            j += 1
        short = j - i < least and steady
        steady += [steady[-1] if short else values[i]] * (j - i)
        i = j
    return steady
