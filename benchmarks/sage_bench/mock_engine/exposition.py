"""Prometheus' text format from plain numbers: cheaper per token than a client library, and a
histogram can take many equal values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Histogram:
    """Counts per bucket.

    Args:
        bounds: upper bounds, rising.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Take a value in, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        """Values taken in."""
        return sum(self.counts)


def header(name: str, kind: str, text: str) -> str:
    """The lines before a metric's samples."""
    return f"# HELP {name} {text}\n# TYPE {name} {kind}"


def sample(name: str, labels: str, value: float) -> str:
    """One line; ``labels`` without braces."""
    return f"{name}{{{labels}}} {float(value)!r}"


def histogram_samples(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    """A histogram's lines, cumulative as the format wants them."""
    bounds = (*(repr(float(bound)) for bound in histogram.bounds), "+Inf")
    for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
        yield sample(f"{name}_bucket", f'{labels},le="{bound}"', count)
    yield sample(f"{name}_count", labels, histogram.count)
    yield sample(f"{name}_sum", labels, histogram.total)


def escaped(value: str) -> str:
    """A label's value as the format wants it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
