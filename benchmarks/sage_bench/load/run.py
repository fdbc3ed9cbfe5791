"""A run of a load: its bounds and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from sage_bench.load.client_meter import ClientLoad
from sage_bench.load.record import RequestRecord
from sage_prefect.common.errors import BenchmarkError

LoopKind = Literal["open", "closed"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a run ends: with its arrivals, or with the first bound that it meets.

    Raises:
        BenchmarkError: a bound is not positive, or there is none.
    """

    duration_s: float | None = None
    """No request is scheduled at or after this time."""
    requests: int | None = None
    drain_s: float = 60.0
    """After the last request, so long for the answers that are still to come."""
    warmup_s: float = 0.0
    """Requests scheduled before it are marked and left out of the summary."""

    def __post_init__(self) -> None:
        for name, value in (("duration", self.duration_s), ("requests", self.requests)):
            if value is not None and not value > 0:
                raise BenchmarkError(f"{name} {value} of a load is not above 0.")
        if self.duration_s is None and self.requests is None:
            raise BenchmarkError(
                "a load without bounds.", hint="Give a duration, a number of requests, or both."
            )
        if not (self.drain_s >= 0 and self.warmup_s >= 0):
            raise BenchmarkError(
                f"drain time {self.drain_s} or warm-up {self.warmup_s} of a load is below 0."
            )

    def admits(self, count: int, at_s: float) -> bool:
        """Whether a request beside ``count`` earlier ones may be scheduled at ``at_s``."""
        if self.requests is not None and count >= self.requests:
            return False
        return self.duration_s is None or at_s < self.duration_s


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What a run recorded."""

    loop: LoopKind
    records: list[RequestRecord]
    """One per request, in the order of their indices."""
    began_at: datetime
    client: ClientLoad
    connections_opened: int
    most_in_flight: int
    warmup_s: float
    scheduled_s: float
    """From the start until the schedule was at its end."""
    interrupted: bool = False
    """Somebody stopped it before its end."""


def wall_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(timezone.utc)
