"""The shared metric set-up."""

from __future__ import annotations

from itertools import pairwise

from prometheus_client import Counter, Histogram

from sage_prefect.common.metrics import LATENCY_BUCKETS, OVERHEAD_BUCKETS, new_registry, render


def test_registries_do_not_clash() -> None:
    first, second = new_registry(), new_registry()
    for registry in (first, second):
        Counter("sage_test_total", "A count.", registry=registry).inc(2)
        Histogram("sage_test_seconds", "A time.", registry=registry, buckets=LATENCY_BUCKETS)
    body, content_type = render(first)
    assert b"sage_test_total 2.0" in body
    assert b'le="600.0"' in body
    assert content_type.startswith("text/plain")


def test_buckets_rise() -> None:
    for buckets in (LATENCY_BUCKETS, OVERHEAD_BUCKETS):
        assert all(low < high for low, high in pairwise(buckets))
