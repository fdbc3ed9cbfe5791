"""What ``/metrics`` of the embedding server shows. Names start with ``sage_embedding_``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """One set per server; a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"sage_embedding_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"sage_embedding_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sage_embedding_{name}", text, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests to the model by status.", ("status",))
        self.request_seconds = histogram(
            "request_seconds", "From the first byte in to the answer ready.", _SECONDS
        )
        self.queue_seconds = histogram(
            "queue_seconds", "From tokenised to the first text in the model.", _SECONDS
        )
        self.texts = counter("texts", "Texts embedded.")
        self.tokens = counter("tokens", "Tokens run through the model, without padding.")
        self.padding = counter("padding_tokens", "Padding run through the model.")
        self.truncated = counter("truncated_texts", "Texts longer than the model reads.")
        self.batch_texts = histogram(
            "batch_texts", "Texts per batch.", (1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.batch_seconds = histogram("batch_seconds", "Forward pass of a batch.", _SECONDS)
        self.failed_batches = counter("failed_batches", "Batches on which the model raised.")
        self.dropped_texts = counter("dropped_texts", "Texts whose client had gone.")
        self.queued_texts = gauge("queued_texts", "Texts that wait for the model.")
        self.queued_tokens = gauge("queued_tokens", "Tokens that wait for the model.")
        self.in_flight = gauge("in_flight_requests", "Requests being worked on.")

    def observe_batch(self, *, texts: int, tokens: int, padding: int, seconds: float) -> None:
        """Count one finished batch."""
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.padding.inc(padding)
        self.batch_texts.observe(texts)
        self.batch_seconds.observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
