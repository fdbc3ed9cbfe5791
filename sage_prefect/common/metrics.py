"""Prometheus metrics: one registry per process part, one set of buckets for all of SAGE.

Labels are low-cardinality by rule: routes, engine and model names that the operator configured,
status classes. Never a request id, a key, a tenant's text or a path that a client chose.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

# Seconds. From a cached embedding to the longest generation that a client waits for.
LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
)  # fmt: skip
# Seconds. What our own code costs: tens of microseconds when all is well.
OVERHEAD_BUCKETS = (
    0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0,
)  # fmt: skip


def new_registry() -> CollectorRegistry:
    """An empty registry. Each service has its own, so that two in one process never clash."""
    return CollectorRegistry(auto_describe=True)


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text exposition of ``registry`` and its content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
