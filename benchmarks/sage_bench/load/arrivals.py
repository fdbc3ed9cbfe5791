"""Arrival times for ``sage bench load``. Richer workloads hand :class:`OpenLoop` arrivals of
their own; it takes any ``(time, request)`` sequence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, get_args

from sage_prefect.common.errors import BenchmarkError, UnknownNameError

Process = Literal["poisson", "constant", "gamma"]


def arrival_times(
    process: Process, rate_per_s: float, rng: random.Random, *, cv: float = 1.0
) -> Iterator[float]:
    """An endless sequence of times in seconds.

    Args:
        process: ``poisson`` (memoryless), ``constant`` (every 1/rate), or ``gamma`` (renewal with
            coefficient of variation ``cv``: above 1 for bursts, as in public traces).
        rate_per_s: mean rate.
        rng: source of chance.
        cv: for ``gamma``.

    Raises:
        BenchmarkError: rate or cv is not positive.
        UnknownNameError: no such process.
    """
    if process not in get_args(Process):
        raise UnknownNameError("arrival process", process, get_args(Process))
    if not 0 < rate_per_s < 1e6 or not 0 < cv < 1e3:
        raise BenchmarkError(f"arrivals at {rate_per_s}/s with CV {cv}: both must be above 0.")
    return _times(process, rate_per_s, rng, cv)


def _times(process: Process, rate: float, rng: random.Random, cv: float) -> Iterator[float]:
    now = 0.0
    shape = 1 / (cv * cv)
    count = 0
    while True:
        if process == "poisson":
            now += rng.expovariate(rate)
        elif process == "gamma":
            now += rng.gammavariate(shape, 1 / (rate * shape))
        else:
            now = count / rate  # no sum of rounding errors
            count += 1
        yield now
