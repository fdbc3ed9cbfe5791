"""What the gateway counts. Label children are looked up once and kept: the hot path only adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sage_gateway.recording import Recorder
from sage_gateway.usage import Usage
from sage_prefect.common.metrics import LATENCY_BUCKETS, OVERHEAD_BUCKETS, new_registry, render

_KEPT = 4096  # children kept by name: known models times routes; a bound against surprises


@dataclass(frozen=True, slots=True)
class EngineGauge:
    """An engine's state at the time of a scrape."""

    name: str
    in_flight: int
    window: int
    ready: bool


class GatewayMetrics:
    """Counters, histograms and scrape-time gauges of one gateway.

    Args:
        queue_depth: how many requests wait for an engine now.
        engines: the engines now.
        recorder: of the event log, if there is one.
    """

    def __init__(
        self,
        queue_depth: Callable[[], int],
        engines: Callable[[], Iterable[EngineGauge]],
        recorder: Recorder | None = None,
    ) -> None:
        self.registry = new_registry()
        self._requests = Counter(
            "sage_gateway_requests",
            "Requests by status class (2xx, 4xx, 5xx, cancelled).",
            ["route", "model", "status"],
            registry=self.registry,
        )
        self._duration = self._histogram(
            "sage_gateway_request_duration_seconds", "From arrival to the last byte.", "route"
        )
        self._ttft = self._histogram(
            "sage_gateway_time_to_first_token_seconds",
            "From arrival to the first byte of a streamed answer.",
            "route",
        )
        self._queue = self._histogram(
            "sage_gateway_queue_seconds", "Wait for an engine with room.", "route"
        )
        self._overhead = Histogram(
            "sage_gateway_overhead_seconds",
            "The gateway's own time before the request goes to the engine, less queueing.",
            ["route"],
            buckets=OVERHEAD_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "sage_gateway_tokens",
            "Tokens that engines reported (prompt, output, cached).",
            ["model", "kind"],
            registry=self.registry,
        )
        self._failures = Counter(
            "sage_gateway_upstream_failures",
            "Failed attempts by engine and cause.",
            ["engine", "cause"],
            registry=self.registry,
        )
        self._batches = Histogram(
            "sage_gateway_batch_inputs",
            "Inputs of the embedding calls that were merged from several requests.",
            ["engine"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
            registry=self.registry,
        )
        self.registry.register(_StateCollector(queue_depth, engines, recorder))
        self._kept_requests: dict[tuple[str, str, int], Counter] = {}
        self._kept: dict[tuple[str, str], tuple[Histogram, Histogram, Histogram]] = {}
        self._kept_overhead: dict[str, Histogram] = {}

    def _histogram(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(
            name, text, [label, "model"], buckets=LATENCY_BUCKETS, registry=self.registry
        )

    def finished(self, route: str, model: str, status: int, seconds: float) -> None:
        """A request was answered (or, status 499, its client went)."""
        status_class = status // 100 if status != 499 else 0
        key = (route, model, status_class)
        counter = self._kept_requests.get(key)
        if counter is None:
            label = f"{status_class}xx" if status_class else "cancelled"
            counter = self._requests.labels(route, model, label)
            if len(self._kept_requests) < _KEPT:
                self._kept_requests[key] = counter
        counter.inc()
        if status_class == 2:
            self._of(route, model)[0].observe(seconds)

    def sent(self, route: str, model: str, queue_s: float, overhead_s: float) -> None:
        """A request went to an engine."""
        self._of(route, model)[2].observe(queue_s)
        overhead = self._kept_overhead.get(route)
        if overhead is None:
            overhead = self._kept_overhead[route] = self._overhead.labels(route)
        overhead.observe(overhead_s)

    def first_token(self, route: str, model: str, seconds: float) -> None:
        """The first byte of a stream came."""
        self._of(route, model)[1].observe(seconds)

    def used(self, model: str, usage: Usage) -> None:
        """An engine reported token counts."""
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
        ):
            if count:
                self._tokens.labels(model, kind).inc(count)

    def attempt_failed(self, engine: str, cause: str) -> None:
        """An attempt on an engine failed."""
        self._failures.labels(engine, cause).inc()

    def batched(self, engine: str, inputs: int) -> None:
        """An engine answered a merged call."""
        self._batches.labels(engine).observe(inputs)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return render(self.registry)

    def _of(self, route: str, model: str) -> tuple[Histogram, Histogram, Histogram]:
        key = (route, model)
        kept = self._kept.get(key)
        if kept is None:
            kept = (
                self._duration.labels(route, model),
                self._ttft.labels(route, model),
                self._queue.labels(route, model),
            )
            if len(self._kept) < _KEPT:
                self._kept[key] = kept
        return kept


class _StateCollector(Collector):
    """Gauges read at scrape time: no bookkeeping that could drift from the truth."""

    def __init__(
        self,
        queue_depth: Callable[[], int],
        engines: Callable[[], Iterable[EngineGauge]],
        recorder: Recorder | None,
    ) -> None:
        self._queue_depth = queue_depth
        self._engines = engines
        self._recorder = recorder

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "sage_gateway_queue_depth", "Requests that wait for an engine.", self._queue_depth()
        )
        recorder = self._recorder
        yield GaugeMetricFamily(
            "sage_gateway_recording",
            "1 while events are recorded; 0 when recording is off or has stopped by itself.",
            float(recorder is not None and recorder.active),
        )
        yield CounterMetricFamily(
            "sage_gateway_recorded_events",
            "Events that the log has taken.",
            recorder.steps if recorder is not None else 0,
        )
        in_flight = GaugeMetricFamily(
            "sage_gateway_in_flight", "Requests inside an engine.", labels=["engine"]
        )
        window = GaugeMetricFamily(
            "sage_gateway_window", "Requests that an engine may hold.", labels=["engine"]
        )
        ready = GaugeMetricFamily(
            "sage_gateway_engine_ready", "1 when an engine takes requests.", labels=["engine"]
        )
        for engine in self._engines():
            in_flight.add_metric([engine.name], engine.in_flight)
            window.add_metric([engine.name], engine.window)
            ready.add_metric([engine.name], float(engine.ready))
        yield in_flight
        yield window
        yield ready
