"""When requests arrive: a renewal process of unit rate, run through a clock of changing speed.

``RateSchedule`` says how many requests a second there are at which time; the gaps have a
coefficient of variation of their own (1: Poisson; above: Gamma gaps, which come in clumps). The
n-th arrival is at the time where the schedule's integral reaches the sum of n unit gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import SettingsError

_BLOCK = 4096
_CLOCKWORK = 1e-3  # gaps that vary less than this do not vary
_MAX_CV = 100.0


@dataclass(frozen=True)
class RateSchedule:
    """Piecewise constant rates: ``rates[i]`` requests/s from ``starts[i]`` on (seconds).

    After the last piece the rate stays, or with ``period_s`` the pieces begin again.

    Raises:
        SettingsError: times do not rise from 0, a rate is negative or not finite, all are 0.
    """

    starts: tuple[float, ...]
    rates: tuple[float, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if not self.starts or self.starts[0] != 0 or not rising:
            raise SettingsError(f"rate schedule: times {self.starts} must rise from 0.")
        bad = [r for r in self.rates if not 0 <= r < math.inf]
        if len(self.rates) != len(self.starts) or bad or not any(self.rates):
            raise SettingsError(
                f"rate schedule: rates {self.rates} must be {len(self.starts)} numbers of at "
                "least 0, one above 0."
            )
        if self.period_s is not None and self.period_s <= self.starts[-1]:
            raise SettingsError(
                f"rate schedule: period {self.period_s} s must be after {self.starts[-1]} s."
            )

    @classmethod
    def constant(cls, rate: float) -> RateSchedule:
        """One rate for ever."""
        return cls((0.0,), (rate,))

    @classmethod
    def square(cls, low: float, high: float, low_s: float, high_s: float) -> RateSchedule:
        """``low`` for ``low_s`` seconds, ``high`` for ``high_s``, and again."""
        return cls((0.0, low_s), (low, high), low_s + high_s)

    @classmethod
    def flash(cls, rate: float, factor: float, at_s: float, for_s: float) -> RateSchedule:
        """A crowd: ``factor`` times the rate for ``for_s`` seconds."""
        return cls((0.0, at_s, at_s + for_s), (rate, rate * factor, rate))

    @classmethod
    def diurnal(cls, rate: float, amplitude: float, period_s: float) -> RateSchedule:
        """A sine around ``rate`` with relative ``amplitude`` (0 to 1), in 96 pieces a period."""
        if not 0 <= amplitude <= 1 or not period_s > 0:
            raise SettingsError(
                f"diurnal: amplitude {amplitude} must be 0 to 1, period {period_s} above 0."
            )
        pieces = 96
        starts = tuple(period_s * i / pieces for i in range(pieces))
        middles = [(i + 0.5) / pieces for i in range(pieces)]
        rates = tuple(rate * (1 + amplitude * math.sin(2 * math.pi * m)) for m in middles)
        return cls(starts, rates, period_s)

    @classmethod
    def wandering(
        cls, rate: float, sd: float, step_s: float, until_s: float, rng: np.random.Generator
    ) -> RateSchedule:
        """Lognormal AR(1) around ``rate``, correlated 0.9 from step to step: long-range bursts
        that independent gaps do not have (the index of dispersion grows with the window)."""
        steps = max(1, math.ceil(until_s / step_s))
        level, levels = float(rng.normal(0, sd)), []
        for _ in range(steps):
            levels.append(level)
            level = 0.9 * level + math.sqrt(1 - 0.81) * float(rng.normal(0, sd))
        rates = tuple(rate * math.exp(x - sd * sd / 2) for x in levels)
        return cls(tuple(i * step_s for i in range(steps)), rates)

    def rate_at(self, at: float) -> float:
        """Requests a second at a time."""
        if self.period_s is not None:
            at %= self.period_s
        return self.rates[int(np.searchsorted(self.starts, at, side="right")) - 1]

    def mean(self, until_s: float) -> float:
        """Mean rate from 0 to ``until_s``."""
        times, integral = self._integral(until_s)
        return float(integral[-1] / times[-1])

    def _integral(self, until_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        times: list[float] = []
        rates: list[float] = []
        base = 0.0
        while True:
            for start, rate in zip(self.starts, self.rates, strict=True):
                if base + start >= until_s:
                    break
                times.append(base + start)
                rates.append(rate)
            if self.period_s is None or base + self.period_s >= until_s:
                break
            base += self.period_s
        times.append(until_s)
        widths = np.diff(np.asarray(times))
        return np.asarray(times), np.concatenate([[0.0], np.cumsum(widths * np.asarray(rates))])


def arrival_times(
    schedule: RateSchedule, cv: float, rng: np.random.Generator, until_s: float
) -> Iterator[float]:
    """Arrival times below ``until_s``, rising.

    Args:
        cv: coefficient of variation of the gaps; 1 is Poisson, under 0.001 is clockwork.

    Raises:
        SettingsError: ``cv`` is not between 0 and 100.
    """
    if not 0 <= cv <= _MAX_CV:
        raise SettingsError(f"arrivals: cv {cv} must be a number from 0 to {_MAX_CV:g}.")
    times, integral = schedule._integral(until_s)
    end = float(integral[-1])
    total = 0.0
    while total < end:
        if cv < _CLOCKWORK:
            gaps = np.ones(_BLOCK)
        elif cv == 1:
            gaps = rng.standard_exponential(_BLOCK)
        else:
            shape = 1 / (cv * cv)
            gaps = rng.gamma(shape, 1 / shape, _BLOCK)
        sums = total + np.cumsum(gaps)
        total = float(sums[-1])
        inside = sums[sums < end]
        piece = np.searchsorted(integral, inside, side="left")
        width = integral[piece] - integral[piece - 1]
        share = (inside - integral[piece - 1]) / width
        start = times[piece - 1]
        yield from (start + share * (times[piece] - start)).tolist()
