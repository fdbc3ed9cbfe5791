"""``/metrics`` of a mock engine, under vLLM's names (vLLM 0.32, ``v1/metrics/loggers.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sage_bench.mock_engine.exposition import (
    Histogram,
    escaped,
    header,
    histogram_samples,
    sample,
)
from sage_bench.simulation.embedding_engine import EmbeddingEngine
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.sequence import Sequence

_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_PREEMPTIONS = (0, 1, 2, 5, 10)
_BLOCK_TOKENS = 16
"""vLLM's block, for ``cache_config_info``; the model itself counts KV by the token."""

REASONS = ("stop", "length", "abort", "error")


class EngineMetrics:
    """The numbers of one engine.

    Args:
        model: value of the label ``model_name``.
        engine: its gauges are read when somebody scrapes.
        embedding: likewise.
    """

    def __init__(self, model: str, engine: LlmEngine, embedding: EmbeddingEngine) -> None:
        self._labels = f'engine="0",model_name="{escaped(model)}"'
        self._engine, self._embedding = engine, embedding
        self.restart()

    def restart(self) -> None:
        """Begin at nothing, as a new process does."""
        self._preemptions_before = self._engine.preemptions
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(REASONS, 0)
        """Requests by how they ended."""
        self.admission_rejections = {"max_num_queued_reqs": 0, "max_num_queued_tokens": 0}
        self.ttft = Histogram(_TTFT)
        self._itl = Histogram(_ITL)
        self._tpot = Histogram(_ITL)
        self._e2e = Histogram(_LATENCY)
        self._queued = Histogram(_LATENCY)
        self._prefill = Histogram(_LATENCY)
        self._decode = Histogram(_LATENCY)
        self._inference = Histogram(_LATENCY)
        self._iteration = Histogram(_ITERATION)
        self._prompts = Histogram(_TOKENS)
        self._outputs = Histogram(_TOKENS)
        self._preempted = Histogram(_PREEMPTIONS)

    def steps(self, count: int, seconds: float, prefilled: int, decoding: int) -> None:
        """Steps of the engine; where the driver slept over several, their mean length counts."""
        self._iteration.observe(prefilled + decoding)
        if count > 1:
            self._iteration.observe(decoding, count - 1)
        if decoding:
            self._itl.observe(seconds / count, count * decoding)

    def first_token(self, sequence: Sequence, came_at: float, at: float) -> None:
        """A sequence has its first token."""
        self.ttft.observe(at - came_at)
        self.prompt_tokens += sequence.prompt
        self.cached_tokens += sequence.cached

    def done(self, sequence: Sequence, reason: str, came_at: float, at: float) -> None:
        """A sequence has ended with all its tokens; times are engine seconds."""
        self.finished[reason] += 1
        first, output = sequence.first_at, sequence.output
        self._e2e.observe(at - came_at)
        self._queued.observe(sequence.admitted_at - came_at)
        self._prefill.observe(first - sequence.admitted_at)
        self._decode.observe(at - first)
        self._inference.observe(at - sequence.admitted_at)
        self._prompts.observe(sequence.prompt)
        self._outputs.observe(output)
        self._preempted.observe(sequence.preemptions)
        if output > 1:
            self._tpot.observe((at - first) / (output - 1))

    def render(self) -> bytes:
        """The exposition text."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _lines(self) -> Iterator[str]:
        yield from self._gauges()
        yield from self._counters()
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Time to first token.", self.ttft),
            ("inter_token_latency_seconds", "Time between tokens.", self._itl),
            ("request_time_per_output_token_seconds", "Mean per request.", self._tpot),
            ("e2e_request_latency_seconds", "Request latency.", self._e2e),
            ("request_queue_time_seconds", "Time in the line.", self._queued),
            ("request_prefill_time_seconds", "Entry to first token.", self._prefill),
            ("request_decode_time_seconds", "First to last token.", self._decode),
            ("request_inference_time_seconds", "Entry to last token.", self._inference),
            ("iteration_tokens_total", "Tokens per step.", self._iteration),
            ("request_prompt_tokens", "Prompt tokens per request.", self._prompts),
            ("request_generation_tokens", "Generated tokens per request.", self._outputs),
            ("request_num_preemptions", "Preemptions per request.", self._preempted),
        ):
            yield header(f"vllm:{name}", "histogram", text)
            yield from histogram_samples(f"vllm:{name}", self._labels, histogram)

    def _gauges(self) -> Iterator[str]:
        engine, embedding = self._engine, self._embedding
        waiting = engine.waiting + embedding.waiting
        kv_tokens = engine.spec.profile.kv_tokens
        config = f'block_size="{_BLOCK_TOKENS}",num_gpu_blocks="{kv_tokens // _BLOCK_TOKENS}"'
        for name, text, values in (
            ("num_requests_running", "In the batch.", {"": engine.running + embedding.running}),
            ("num_requests_waiting", "In the line.", {"": waiting}),
            (
                "num_requests_waiting_by_reason",
                "In the line, by reason.",
                {'reason="capacity"': waiting, 'reason="deferred"': 0},
            ),
            ("kv_cache_usage_perc", "1: full.", {"": 1 - engine.free_tokens / kv_tokens}),
            (
                "engine_sleep_state",
                "1: the state it is in.",
                {
                    'sleep_state="awake"': 1,
                    'sleep_state="weights_offloaded"': 0,
                    'sleep_state="discard_all"': 0,
                },
            ),
            ("cache_config_info", "Configuration of the KV cache.", {config: 1}),
        ):
            yield from self._samples(name, "gauge", text, values)

    def _counters(self) -> Iterator[str]:
        preemptions = self._engine.preemptions - self._preemptions_before
        for name, text, values in (
            ("prefix_cache_queries", "Prompt tokens looked up.", {"": self.prompt_tokens}),
            ("prefix_cache_hits", "Prompt tokens found.", {"": self.cached_tokens}),
            ("num_preemptions", "Preemptions.", {"": preemptions}),
            ("prompt_tokens", "Prompt tokens.", {"": self.prompt_tokens}),
            ("prompt_tokens_cached", "Of those, from the cache.", {"": self.cached_tokens}),
            ("generation_tokens", "Tokens generated.", {"": self.generation_tokens}),
            (
                "request_success",
                "Finished requests.",
                {f'finished_reason="{reason}"': n for reason, n in self.finished.items()},
            ),
            (
                "admission_rejections",
                "Answered with 503.",
                {f'reason="{reason}"': n for reason, n in self.admission_rejections.items()},
            ),
        ):
            yield from self._samples(f"{name}_total", "counter", text, values)

    def _samples(
        self, name: str, kind: str, text: str, values: Mapping[str, float]
    ) -> Iterator[str]:
        yield header(f"vllm:{name}", kind, text)
        for extra, value in values.items():
            labels = f"{self._labels},{extra}" if extra else self._labels
            yield sample(f"vllm:{name}", labels, value)
