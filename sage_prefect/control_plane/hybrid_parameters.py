"""The hybrid policy's constants and switches. What is off is left out, so that an ablation, and
each simpler policy, is this policy with parts switched off."""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_prefect.control_plane.events import Band, BandSpec
from sage_prefect.control_plane.window import WindowRules

DEFAULT_BANDS: dict[Band, BandSpec] = {
    Band.CRITICAL: BandSpec(Band.CRITICAL, reject_share=0.35),
    Band.INTERACTIVE: BandSpec(Band.INTERACTIVE, age_limit_s=30.0, reject_share=0.3),
    Band.STANDARD: BandSpec(Band.STANDARD, min_share=0.02, age_limit_s=120.0, reject_share=0.45),
    Band.BATCH: BandSpec(Band.BATCH, min_share=0.05, age_limit_s=900.0),
}
"""Where the configuration names none. Nothing is promised that nobody asked for: on a slow engine
an invented promise would hold and reject for nothing."""
ORDER_S: dict[Band, float] = {
    Band.CRITICAL: 1.0,
    Band.INTERACTIVE: 2.0,
    Band.STANDARD: 10.0,
    Band.BATCH: 3600.0,
}
"""Horizon of a request without a promise, for the order among its tenant's requests."""


@dataclass(frozen=True, slots=True)
class HybridParameters:
    """Defaults are those of the research page; times in seconds."""

    bands: bool = True
    """Serve by urgency; off: one band."""
    fair: bool = True
    """Tenants by virtual time; off: one flow."""
    by_deadline: bool = True
    """Earliest deadline first within a tenant; off: by arrival."""
    gate: bool = True
    """Batch work enters an engine only while its latency requests keep their promises."""
    hold: bool = True
    """Latency requests wait where the predicted time per token would break their promise."""
    partition: bool = True
    """Prefer some engines for batch work, as many as demand leaves."""
    admission: bool = True
    """Reject early what would wait too long."""
    prefix: bool = True
    """Look for cached prompts."""
    price: bool = False
    """Choose the cheapest engine that is in time, not the fastest."""

    ttft_gate: float = 0.7
    """Share of the promised time to first token that batch work may bring it to."""
    last_resort: float = 0.3
    """With less than this share of its slack left a latency request takes the least bad engine."""
    bend: float = 1.05
    """... unless that would bring time per token over so many times the promise."""
    harm: float = 0.2
    """What each latency request inside adds to the score of its engine, as a share of it."""
    over_share: float = 2.0
    """A tenant with so many times its share of the service lately leaves room to the others ..."""
    over_least: float = 0.25
    """... if that is at least this share of all service."""
    over_tpot: float = 0.7
    """Share of the promised time per token that it may bring an engine to."""
    over_ttft: float = 0.5
    """Share of the promised time to first token that it may bring the next request's to ..."""
    over_engines: float = 0.25
    """... except on this share of the engines: a long prompt has to go somewhere."""
    near: float = 0.02
    """Engines within this share of the best score are equal: one of them by chance."""
    scan: int = 32
    """Up to so many engines all are looked at."""
    waiting: int = 2
    """Requests without a first token per engine, beyond one token budget of prefill."""
    at_least: int = 2
    """With fewer queued in its band nobody is refused: nothing drains from an empty queue."""
    drain_tau: float = 5.0
    standing: float = 0.1
    partition_period: float = 5.0
    partition_step: float = 10.0
    partition_margin: float = 0.95
    partition_tpot: float = 0.85
    """Latency engines are sized for this share of the promise."""
    tick: float = 0.05
    window: WindowRules = field(default_factory=WindowRules)

    def heeds_ttft(self, band: Band) -> bool:
        """Whether a promised time to first token of this band changes any decision."""
        if not self._knows(band):
            return False
        judged = self.gate or self.hold or self.admission
        return self.by_deadline or (judged and band is not Band.BATCH)

    def heeds_tpot(self, band: Band) -> bool:
        """Whether a promised time per token of this band changes any decision: windows follow it
        always, batch work's excepted."""
        return self._knows(band) and band is not Band.BATCH

    def _knows(self, band: Band) -> bool:
        # Without bands all requests count as interactive ones.
        return self.bands or band is Band.INTERACTIVE
