"""Counters and histograms that cost next to nothing to add to, and are exposed when scraped.

``prometheus_client``'s own children take a lock for every bucket and sum, some 2 us an observation.
Here everything happens in the event loop's thread: an observation is a search and two additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount


class Distribution:
    """How observations spread over buckets."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class TallyFamily:
    """Tallies of one name by labels; keep the child that :meth:`child` gives."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._children: dict[Labels, Tally] = {}

    def child(self, *labels: str) -> Tally:
        """The tally of these label values."""
        found = self._children.get(labels)
        if found is None:
            found = self._children[labels] = Tally()
        return found

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, tally in self._children.items():
            family.add_metric(labels, tally.value)
        yield family


class DistributionFamily:
    """Distributions of one name by labels; keep the child that :meth:`child` gives.

    Args:
        bounds: upper ends of the buckets, ascending; the last one, without an end, is added.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = bounds
        self._ends: list[str] = [
            floatToGoString(bound)  # type: ignore[no-untyped-call]
            for bound in (*bounds, float("inf"))
        ]
        self._children: dict[Labels, Distribution] = {}

    def child(self, *labels: str) -> Distribution:
        """The distribution of these label values."""
        found = self._children.get(labels)
        if found is None:
            found = self._children[labels] = Distribution(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, child in self._children.items():
            reached, buckets = 0, []
            for end, count in zip(self._ends, child.counts, strict=True):
                reached += count
                buckets.append((end, float(reached)))
            family.add_metric(labels, buckets, child.total)
        yield family
