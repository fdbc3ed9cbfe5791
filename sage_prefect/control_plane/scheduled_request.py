"""A request while the control plane holds it: where it stands and what happened to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sage_prefect.control_plane.events import Band, RequestInfo

Told = tuple[Callable[[Any], object], Any]
"""(function, what it is told of): a detail that is put into words only when somebody asks."""
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
    spared: int = 0
    """Attempts that do not count against its retries."""
    tried: frozenset[str] = frozenset()
    """Engines that failed it: others are preferred."""
    queued_at: float = 0.0
    """When it joined the queue, last."""
    give_up_at: float = float("inf")
    first_token_at: float | None = None
    chunks: int = 0
    dispatched_at: float = 0.0
    band: Band = Band.STANDARD
    """In force: its own, or a more urgent one after a long wait."""
    ages_at: float = float("inf")
    """When its present wait moves it up by one band."""
    due: float = float("inf")
    """By when it should begin, for the order among a tenant's requests."""
    ttft_slo_s: float = float("inf")
    tpot_slo_s: float = float("inf")
    cost_s: float = 0.0
    """Predicted engine-seconds: charged at dispatch and as it goes on, corrected at the end."""
    share_s: float = 0.0
    """What it counts for in its tenant's share of what is inside engines."""
    uncached: float = 0.0
    """Prompt tokens that its engine was believed to have to compute."""
    cached: float = 0.0
    prefilling: bool = False
    """Inside an engine, and its prompt is not known to be through."""
    prefill_ahead: float = 0.0
    load_at_dispatch: tuple[float, float] = (0.0, 0.0)
    """(sequences, context tokens) inside its engine when it came there."""
    context: float = 0.0
    """KV tokens that are counted for it in its engine."""
    growth: float = 0.0
    """Tokens of its answer that its engine still has to make room for."""
    progress_at: float = 0.0
    waits_in: Any = None
    """The queue that holds it, if any."""
    notes: list[tuple[float, str, dict[str, Any] | tuple[Any, ...]]] = field(default_factory=list)
    """What ``explain`` tells: (time, what happened, details). The details of what happens to every
    request are values alone, in the order of ``_NAMES``."""

    @property
    def request_id(self) -> str:
        return self.info.request_id

    @property
    def is_queued(self) -> bool:
        return self.state == "queued"

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
                {"at_s": round(at - self.arrived, 6), "what": what, **_told(what, details)}
                for at, what, details in self.notes
            ],
        }


_NAMES = {
    "dispatched": ("engine", "policy", "scores"),
    "done": ("prompt_tokens", "output_tokens"),
}


def _told(what: str, details: dict[str, Any] | tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(details, dict):
        return details
    return {
        name: one[0](one[1]) if isinstance(one, tuple) else one
        for name, one in zip(_NAMES[what], details, strict=True)
    }
