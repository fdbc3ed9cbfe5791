"""``/metrics`` of a mock engine, under vLLM's names (vLLM 0.32, ``v1/metrics/loggers.py``)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sage_bench.simulation.embedding_engine import EmbeddingEngine
from sage_bench.simulation.llm_engine import LlmEngine

_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_E2E = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class EngineMetrics:
    """The registry of one engine.

    Args:
        model: value of the label ``model_name``.
        engine: read when somebody scrapes.
        embedding: likewise.
    """

    def __init__(self, model: str, engine: LlmEngine, embedding: EmbeddingEngine) -> None:
        self.registry = CollectorRegistry()
        labels = {"model_name": model, "engine": "0"}
        names = tuple(labels)

        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            made = Gauge(name, text, names, registry=self.registry)
            made.labels(**labels).set_function(read)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, text, names, buckets=buckets, registry=self.registry)
            return made.labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=self.registry).labels(**labels)

        kv_tokens = engine.spec.profile.kv_tokens
        gauge(
            "vllm:num_requests_running",
            "Requests in the running batch.",
            lambda: engine.running + embedding.running,
        )
        gauge(
            "vllm:num_requests_waiting",
            "Requests that wait.",
            lambda: engine.waiting + embedding.waiting,
        )
        gauge(
            "vllm:kv_cache_usage_perc",
            "KV cache in use; 1: all of it.",
            lambda: 1 - engine.free_tokens / kv_tokens,
        )
        self._engine = engine
        self._preemptions = counter("vllm:num_preemptions", "Preemptions.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.cache_queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up.")
        self.cache_hits = counter("vllm:prefix_cache_hits", "Prompt tokens found in the cache.")
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Time to first token.", _TTFT)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token.", _ITL
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Request latency.", _E2E)
        finished = Counter(
            "vllm:request_success",
            "Finished requests.",
            (*names, "finished_reason"),
            registry=self.registry,
        )
        self._finished = {
            reason: finished.labels(**labels, finished_reason=reason)
            for reason in ("stop", "length", "abort")
        }
        block = 16
        Gauge(
            "vllm:cache_config_info",
            "Configuration of the KV cache.",
            (*names, "block_size", "num_gpu_blocks"),
            registry=self.registry,
        ).labels(**labels, block_size=str(block), num_gpu_blocks=str(kv_tokens // block)).set(1)
        self._seen_preemptions = 0

    def finished(self, reason: str) -> None:
        """A request has ended: ``stop``, ``length`` or ``abort``."""
        self._finished[reason].inc()

    def render(self) -> bytes:
        """The exposition text."""
        total = self._engine.preemptions
        self._preemptions.inc(total - self._seen_preemptions)
        self._seen_preemptions = total
        return generate_latest(self.registry)
