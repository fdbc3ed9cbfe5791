"""The books of an engine: what became of each request that came."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from sage_bench.mock_engine.api import Job

_KEPT_RECORDS = 1_000_000


@dataclass(slots=True)
class ServedRequest:
    """One line; lengths are tokens."""

    request_id: str
    kind: str
    priority: int
    prompt_tokens: int
    output_tokens: int
    outcome: str = "running"
    """``done``, ``aborted`` (its client went), ``lost`` (crash), ``refused``, ``fault`` (one was
    ordered for it) or ``running``."""
    generated: int = 0


@dataclass(slots=True)
class Books:
    """Lines in the order of arrival; the oldest go after a million."""

    records: deque[ServedRequest] = field(default_factory=lambda: deque(maxlen=_KEPT_RECORDS))

    def open(self, request_id: str, kind: str, job: Job | None = None) -> ServedRequest:
        """A new line."""
        record = ServedRequest(request_id, kind, 0, 0, 0)
        if job is not None:
            record.priority = job.priority
            record.prompt_tokens, record.output_tokens = job.prompt, job.output
        self.records.append(record)
        return record

    def outcomes(self) -> dict[str, int]:
        """Lines by outcome."""
        return dict(Counter(record.outcome for record in self.records))
