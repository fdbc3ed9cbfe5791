"""One answer while the engine generates it: tokens out of the model become events of the stream."""

from __future__ import annotations

from sage_bench.mock_engine.answers import Answer
from sage_bench.mock_engine.books import ServedRequest
from sage_bench.mock_engine.connection import Responder
from sage_bench.mock_engine.engine_metrics import EngineMetrics
from sage_bench.simulation.sequence import Sequence


class Generation:
    """Listens to a sequence and writes its answer.

    Like vLLM's, the head of a stream leaves with the first token, so that an early failure can
    still be a status.

    Args:
        came_at: engine time of the request.
    """

    __slots__ = (
        "_answer",
        "_came_at",
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
        came_at: float,
    ) -> None:
        self.streams = answer.job.stream
        self._answer, self._sequence, self._responder = answer, sequence, responder
        self._record, self._metrics = record, metrics
        self._came_at = came_at
        self._sent = 0

    def tokens(self, count: int, at: float) -> None:
        """``count`` tokens are generated."""
        first = self._sent
        if count <= first:
            return
        self._sent = self._record.generated = count
        self._metrics.generation_tokens += count - first
        if not first:
            self._metrics.first_token(self._sequence, self._came_at, at)
        if not self.streams:
            return
        events = self._answer.token_events(first, count)
        if first:
            self._responder.chunk(events)
        else:
            self._responder.begin_stream()
            self._responder.chunk(self._answer.first_event() + events)

    def finished(self, at: float) -> None:
        """All tokens are generated, and sent."""
        sequence = self._sequence
        self._record.outcome = "done" if self._responder.fault is None else "fault"
        self._metrics.done(sequence, self._answer.job.finish_reason, self._came_at, at)
        if self.streams:
            self._responder.chunk(self._answer.end_events(sequence.cached))
            self._responder.end_stream()
        else:
            self._responder.whole(200, self._answer.whole(sequence.cached))

    def lost(self) -> None:
        """The engine crashed; its connections are reset."""
        self._record.outcome = "lost"

    def aborted(self) -> None:
        """The client has gone."""
        if self._record.outcome == "running":
            self._record.outcome = "aborted" if self._responder.fault is None else "fault"
            self._metrics.finished["abort"] += 1
