"""What the gateway counts. Label children are looked up once and kept: the hot path only adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sage_gateway.recording import Recorder
from sage_gateway.tallies import Distribution, DistributionFamily, Tally, TallyFamily
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
        self._requests = TallyFamily(
            "sage_gateway_requests",
            "Requests by status class (2xx, 4xx, 5xx, cancelled).",
            ["route", "model", "status"],
        )
        self._duration = _by_model(
            "sage_gateway_request_duration_seconds", "From arrival to the last byte."
        )
        self._ttft = _by_model(
            "sage_gateway_time_to_first_token_seconds",
            "From arrival to the first byte of a streamed answer.",
        )
        self._queue = _by_model("sage_gateway_queue_seconds", "Wait for an engine with room.")
        self._overhead = DistributionFamily(
            "sage_gateway_overhead_seconds",
            "The gateway's own time before the request goes to the engine, less queueing.",
            ["route"],
            OVERHEAD_BUCKETS,
        )
        self._whole_overhead = DistributionFamily(
            "sage_gateway_whole_overhead_seconds",
            "The gateway's own time from the request read to a whole answer sent: before the "
            "request goes to the engine and after its answer has come, less queueing.",
            ["route"],
            OVERHEAD_BUCKETS,
        )
        self._tokens = TallyFamily(
            "sage_gateway_tokens",
            "Tokens that engines reported (prompt, output, cached).",
            ["model", "kind"],
        )
        self._failures = TallyFamily(
            "sage_gateway_upstream_failures",
            "Failed attempts by engine and cause.",
            ["engine", "cause"],
        )
        self._batches = DistributionFamily(
            "sage_gateway_batch_inputs",
            "Inputs of the embedding calls that were merged from several requests.",
            ["engine"],
            (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
        )
        self.registry.register(
            _FamilyCollector(
                (
                    self._requests, self._duration, self._ttft, self._queue, self._overhead,
                    self._whole_overhead, self._tokens, self._failures, self._batches,
                )
            )
        )  # fmt: skip
        self.registry.register(_StateCollector(queue_depth, engines, recorder))
        self._kept_requests: dict[tuple[str, str, int], Tally] = {}
        self._kept: dict[tuple[str, str], _Kept] = {}

    def finished(self, route: str, model: str, status: int, seconds: float) -> None:
        """A request was answered (or, status 499, its client went)."""
        status_class = status // 100 if status != 499 else 0
        key = (route, model, status_class)
        tally = self._kept_requests.get(key)
        if tally is None:
            label = f"{status_class}xx" if status_class else "cancelled"
            tally = self._requests.child(route, model, label)
            if len(self._kept_requests) < _KEPT:
                self._kept_requests[key] = tally
        tally.value += 1.0
        if status_class == 2:
            self._of(route, model).duration.observe(seconds)

    def sent(self, route: str, model: str, queue_s: float, overhead_s: float) -> None:
        """A request went to an engine."""
        kept = self._of(route, model)
        kept.queue.observe(queue_s)
        kept.overhead.observe(overhead_s)

    def answered(self, route: str, model: str, overhead_s: float) -> None:
        """A whole answer was sent; ``overhead_s`` is the gateway's own time, both ways."""
        self._of(route, model).whole_overhead.observe(overhead_s)

    def first_token(self, route: str, model: str, seconds: float) -> None:
        """The first byte of a stream came."""
        self._of(route, model).ttft.observe(seconds)

    def used(self, route: str, model: str, usage: Usage) -> None:
        """An engine reported token counts."""
        kept = self._of(route, model)
        if usage.prompt_tokens:
            kept.prompt_tokens.value += usage.prompt_tokens
        if usage.output_tokens:
            kept.output_tokens.value += usage.output_tokens
        if usage.cached_tokens:
            self._tokens.child(model, "cached").add(usage.cached_tokens)

    def attempt_failed(self, engine: str, cause: str) -> None:
        """An attempt on an engine failed."""
        self._failures.child(engine, cause).add()

    def batched(self, engine: str, inputs: int) -> None:
        """An engine answered a merged call."""
        self._batches.child(engine).observe(inputs)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return render(self.registry)

    def _of(self, route: str, model: str) -> _Kept:
        key = (route, model)
        kept = self._kept.get(key)
        if kept is None:
            kept = _Kept(
                self._duration.child(route, model),
                self._ttft.child(route, model),
                self._queue.child(route, model),
                self._overhead.child(route),
                self._whole_overhead.child(route),
                self._tokens.child(model, "prompt"),
                self._tokens.child(model, "output"),
            )
            if len(self._kept) < _KEPT:
                self._kept[key] = kept
        return kept


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a request of one route and model adds to."""

    duration: Distribution
    ttft: Distribution
    queue: Distribution
    overhead: Distribution
    whole_overhead: Distribution
    prompt_tokens: Tally
    output_tokens: Tally


def _by_model(name: str, text: str) -> DistributionFamily:
    return DistributionFamily(name, text, ["route", "model"], LATENCY_BUCKETS)


class _FamilyCollector(Collector):
    """Exposes the families."""

    def __init__(self, families: Iterable[TallyFamily | DistributionFamily]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield from family.collect()


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
