"""Prometheus text from plain numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference
from prometheus_client.parser import text_string_to_metric_families

from sage_bench.mock_engine.exposition import (
    Histogram,
    escaped,
    header,
    histogram_samples,
    sample,
)

BOUNDS = (0.01, 0.1, 1.0, 2.5)


@given(st.lists(st.floats(0, 10), max_size=30))
def test_a_histogram_counts_like_the_reference(values: list[float]) -> None:
    ours, registry = Histogram(BOUNDS), CollectorRegistry()
    theirs = Reference("x", "text", buckets=BOUNDS, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    text = "\n".join([header("x", "histogram", "text"), *histogram_samples("x", 'a="b"', ours)])
    for family in text_string_to_metric_families(text + "\n"):
        for one in family.samples:
            bound = {"le": one.labels["le"]} if "le" in one.labels else {}
            assert registry.get_sample_value(one.name, bound) == one.value, one


@given(st.floats(0, 10), st.integers(1, 50))
def test_equal_values_can_come_at_once(value: float, times: int) -> None:
    one, many = Histogram(BOUNDS), Histogram(BOUNDS)
    many.observe(value, times)
    for _ in range(times):
        one.observe(value)
    assert (one.counts, one.count) == (many.counts, many.count)
    assert abs(one.total - many.total) < 1e-9


@given(st.text())
def test_any_label_can_be_read_again(value: str) -> None:
    value = value.replace("\r", "")
    labels = 'a="' + escaped(value) + '"'
    text = "\n".join([header("x", "gauge", "text"), sample("x", labels, 1), ""])
    [family] = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"a": value}
