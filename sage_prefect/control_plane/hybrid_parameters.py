"""The hybrid policy's constants and switches. What is off is left out, so that an ablation, and
each simpler policy, is this policy with parts switched off."""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_prefect.control_plane.events import Band, BandSpec
from sage_prefect.control_plane.window import WindowRules

DEFAULT_BANDS: dict[Band, BandSpec] = {
    Band.CRITICAL: BandSpec(Band.CRITICAL, 1.0, 0.05, 0.0, None, 0.5),
    Band.INTERACTIVE: BandSpec(Band.INTERACTIVE, 2.0, 0.1, 0.0, 30.0, 0.35),
    Band.STANDARD: BandSpec(Band.STANDARD, 10.0, 0.15, 0.02, 120.0, 0.6),
    Band.BATCH: BandSpec(Band.BATCH, None, None, 0.05, 900.0, None),
}
"""Wishes where request and configuration name none."""


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
    latency_gate: float = 1.0
    last_resort: float = 0.3
    """With less than this share of its slack left a latency request takes the least bad engine."""
    bend: float = 1.3
    """... unless that would bring time per token over so many times the promise."""
    min_batch_period: float = 10.0
    """Each engine may take one batch request in so many seconds even where the gate is shut."""
    harm: float = 1.0
    """Weight of the delay that a prompt causes to the others inside."""
    near: float = 0.05
    """Engines within this share of the best score are equal: one of them by chance."""
    scan: int = 32
    """Up to so many engines all are looked at."""
    waiting: int = 2
    """Requests without a first token per engine, beyond one token budget of prefill."""
    drain_tau: float = 5.0
    standing: float = 2.0
    partition_period: float = 5.0
    partition_step: float = 10.0
    partition_margin: float = 0.95
    partition_tpot: float = 0.85
    """Latency engines are sized for this share of the promise."""
    tick: float = 0.05
    window: WindowRules = field(default_factory=WindowRules)
