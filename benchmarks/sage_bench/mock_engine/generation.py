"""One answer while the engine generates it: tokens out of the model become events of the stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sage_bench.mock_engine.answers import Answer
from sage_bench.mock_engine.connection import Responder
from sage_bench.mock_engine.engine_metrics import EngineMetrics
from sage_bench.simulation.sequence import Sequence

if TYPE_CHECKING:
    from sage_bench.mock_engine.engine import ServedRequest


class Generation:
    """Listens to a sequence and writes its answer.

    Like vLLM's, the head of a stream leaves with the first token, so that an early failure can
    still be a status.
    """

    __slots__ = (
        "_answer",
        "_came_at",
        "_first_at",
        "_metrics",
        "_record",
        "_responder",
        "_sent",
        "_sequence",
        "streams",
    )

    def __init__(
        self,
        answer: Answer,
        sequence: Sequence,
        responder: Responder,
        record: ServedRequest,
        metrics: EngineMetrics,
    ) -> None:
        self.streams = answer.job.stream
        self._answer, self._sequence, self._responder = answer, sequence, responder
        self._record, self._metrics = record, metrics
        self._came_at = time.monotonic()
        self._first_at = 0.0
        self._sent = 0

    def tokens(self, count: int, now: float) -> None:
        """``count`` tokens are generated."""
        if count <= self._sent:
            return
        first, self._sent = self._sent, count
        self._record.generated = count
        if not first:
            self._first_at = now
            self._metrics.ttft.observe(now - self._came_at)
            self._metrics.prompt_tokens.inc(self._answer.job.prompt)
            self._metrics.cache_queries.inc(self._answer.job.prompt)
            self._metrics.cache_hits.inc(self._sequence.cached)
        self._metrics.generation_tokens.inc(count - first)
        if not self.streams:
            return
        events = self._answer.token_events(first, count)
        if not first:
            self._responder.begin_stream()
            events = self._answer.first_event() + events
        self._responder.chunk(events)

    def finished(self, now: float) -> None:
        """All tokens are generated, and sent."""
        job, metrics = self._answer.job, self._metrics
        self._record.outcome = "done" if self._responder.fault is None else "fault"
        metrics.e2e.observe(now - self._came_at)
        if job.output > 1:
            metrics.tpot.observe((now - self._first_at) / (job.output - 1))
        metrics.finished(job.finish_reason)
        if self.streams:
            self._responder.chunk(self._answer.end_events(self._sequence.cached))
            self._responder.end_stream()
        else:
            self._responder.whole(200, self._answer.whole(self._sequence.cached))

    def lost(self) -> None:
        """The engine crashed; its connections are reset."""
        self._record.outcome = "lost"

    def aborted(self) -> None:
        """The client has gone."""
        if self._record.outcome == "running":
            fault = self._responder.fault
            self._record.outcome = "aborted" if fault is None else "fault"
            self._metrics.finished("abort")
