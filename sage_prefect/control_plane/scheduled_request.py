"""A request while the control plane holds it: where it stands and what happened to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sage_prefect.control_plane.events import RequestInfo

State = Literal["queued", "running", "done", "failed", "rejected", "cancelled"]


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """Mutable record; the manager owns it, policies read it."""

    info: RequestInfo
    seq: int
    """Place in the order of arrival; kept through retries and policy changes."""
    arrived: float
    state: State = "queued"
    engine: str | None = None
    attempts: int = 0
    tried: frozenset[str] = frozenset()
    """Engines that failed it: others are preferred."""
    queued_at: float = 0.0
    """When it joined the queue, last."""
    give_up_at: float = float("inf")
    first_token_at: float | None = None
    chunks: int = 0
    notes: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """What ``explain`` tells: (time, what happened, details)."""

    @property
    def request_id(self) -> str:
        return self.info.request_id

    def note(self, now: float, what: str, **details: Any) -> None:
        self.notes.append((now, what, details))

    def story(self) -> dict[str, Any]:
        """The answer of ``explain``: times are seconds since the arrival."""
        return {
            "request_id": self.info.request_id,
            "model": self.info.model,
            "tenant": self.info.tenant,
            "band": self.info.band.label,
            "state": self.state,
            "engine": self.engine,
            "attempts": self.attempts,
            "decisions": [
                {"at_s": round(at - self.arrived, 6), "what": what, **details}
                for at, what, details in self.notes
            ],
        }
