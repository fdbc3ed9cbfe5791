"""Claims: a bound on a figure, judged at the conservative end of its interval.

``fails`` and ``unproved`` are results like any other and are printed as such.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Literal

from sage_bench.stats import Interval

# Fewer rounds than this prove nothing here, however narrow the interval looks.
MIN_ROUNDS = 5


class Verdict(str, enum.Enum):
    """What the measurement says about a claim."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNPROVED = "UNPROVED"


@dataclass(frozen=True)
class Claim:
    """``metric`` of ``system`` (divided by the peer's, if ``peer`` is set) against a bound.

    Args:
        name: short and stable; later runs are compared by it.
        text: the promise in a reader's words.
        metric: name of the metric.
        system: whose figure.
        direction: ``">="`` or ``"<="``.
        bound: in the metric's unit, or a plain ratio when ``peer`` is set.
        peer: the system to divide by; None: the figure itself is bounded.
        case: the case of the experiment that it speaks of.
    """

    name: str
    text: str
    metric: str
    system: str
    direction: Literal[">=", "<="]
    bound: float
    peer: str | None = None
    case: str = ""


@dataclass(frozen=True)
class Outcome:
    """A judged claim: the verdict, the interval that it rests on, and why."""

    claim: Claim
    verdict: Verdict
    interval: Interval | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for summary.json."""
        claim = self.claim
        return {
            "name": claim.name,
            "text": claim.text,
            "case": claim.case,
            "metric": claim.metric,
            "system": claim.system,
            "peer": claim.peer,
            "direction": claim.direction,
            "bound": claim.bound,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "interval": self.interval.to_json() if self.interval else None,
        }


def judge(
    claim: Claim,
    interval: Interval | None,
    *,
    noise: Interval | None = None,
    failures: int = 0,
    peer_failures: int = 0,
) -> Outcome:
    """Judge ``claim`` by ``interval``.

    Args:
        interval: the figure or ratio; None when nothing was measured.
        noise: the A/A ratio of the same metric. Where it misses 1 by a factor, the machine itself
            makes equal systems differ by that much: the claim must clear its bound by it too.
        failures: failed rounds of the claimed system. Any fails the claim.
        peer_failures: failed rounds of the peer. Any leaves the claim unproved.
    """
    if failures:
        return Outcome(claim, Verdict.FAIL, interval, f"{failures} rounds of {claim.system} failed")
    if peer_failures:
        reason = f"{peer_failures} rounds of the peer {claim.peer} failed"
        return Outcome(claim, Verdict.UNPROVED, interval, reason)
    if interval is None:
        return Outcome(claim, Verdict.UNPROVED, None, "nothing was measured")
    if interval.n < MIN_ROUNDS:
        reason = f"{interval.n} rounds; {MIN_ROUNDS} are needed"
        return Outcome(claim, Verdict.UNPROVED, interval, reason)
    bias = noise_factor(noise)
    low, high = interval.low / bias, interval.high * bias
    if claim.direction == ">=":
        verdict = _verdict(low >= claim.bound, high < claim.bound)
        end, value = "low", low
    else:
        verdict = _verdict(high <= claim.bound, low > claim.bound)
        end, value = "high", high
    reason = f"{end} end {value:.4g} {claim.direction} {claim.bound:.4g}"
    if verdict is Verdict.FAIL:
        reason = f"all of [{low:.4g}, {high:.4g}] misses {claim.direction} {claim.bound:.4g}"
    elif verdict is Verdict.UNPROVED:
        reason = f"[{low:.4g}, {high:.4g}] straddles {claim.bound:.4g}"
    if bias > 1:
        reason += f" (widened by the A/A noise, factor {bias:.3f})"
    return Outcome(claim, verdict, interval, reason)


def noise_factor(noise: Interval | None) -> float:
    """By how much the A/A interval misses 1, as a factor >= 1."""
    if noise is None or noise.contains(1.0) or not math.isfinite(noise.low):
        return 1.0
    return noise.low if noise.low > 1 else 1 / noise.high


def _verdict(passes: bool, fails: bool) -> Verdict:
    if passes:
        return Verdict.PASS
    return Verdict.FAIL if fails else Verdict.UNPROVED
