"""How long an embedding call takes: ``s0 + alpha * tokens``, corrected by each call's time.

Both constants start from the engine's profile and follow by recursive least squares with
forgetting. Errors count relative to the prediction, because calls last from milliseconds to
seconds and their noise grows with them.
"""

from __future__ import annotations

from sage_prefect.control_plane.engine_model import CLAMP, FORGETTING, UNKNOWN
from sage_prefect.control_plane.events import EngineProfile

_UNKNOWN_CLAMP = 100.0
# Variance of each constant's factor over that of a call's relative error (about 0.2 squared).
_TRUSTED, _UNTRUSTED = 4.0, 400.0
_OUTLIER = 8.0
_LEAST_ALPHA = 1e-12  # no engine computes a token faster: such a profile is a mistake
_LONGEST_CALL_S = 3600.0


class EmbeddingCost:
    """Predicts calls of one engine.

    Args:
        prior: its profile; without ``s0`` and ``alpha`` a guess that may be wrong by 100.
    """

    __slots__ = ("_clamp", "_cov", "_most", "_prior", "alpha", "s0", "samples")

    def __init__(self, prior: EngineProfile | None) -> None:
        known = prior is not None and prior.alpha >= _LEAST_ALPHA
        base = prior if prior is not None and known else UNKNOWN
        self._prior = base
        self._clamp = CLAMP if known else _UNKNOWN_CLAMP
        self._most = _TRUSTED if known else _UNTRUSTED
        self._cov = (self._most, 0.0, self._most)
        self.s0 = base.s0
        """Seconds of a call, however short."""
        self.alpha = base.alpha
        """Seconds per token."""
        self.samples = 0

    def call_s(self, tokens: float) -> float:
        """Seconds of one call that computes ``tokens``."""
        return self.s0 + self.alpha * tokens

    def alone_s(self, tokens: float) -> float:
        """Seconds of a call of ``tokens`` without a neighbour: the profile's, or less if less was
        seen."""
        seen = self.call_s(tokens)
        if self._clamp != CLAMP:
            return seen
        # Not each constant's lesser: calls of one size say nothing of how the time divides.
        return min(seen, self._prior.s0 + self._prior.alpha * tokens)

    def saw(self, seconds: float, tokens: float) -> None:
        """A call of ``tokens`` took so long. Times that cannot be true are passed over."""
        predicted = self.call_s(tokens)
        if not 0 < seconds < _LONGEST_CALL_S or tokens <= 0 or predicted <= 0:
            return
        self.samples += 1
        prior = self._prior
        x0, x1 = prior.s0 / predicted, prior.alpha * tokens / predicted
        error = min(_OUTLIER, max(1 / _OUTLIER, seconds / predicted)) - 1.0
        c00, c01, c11 = self._cov
        p0, p1 = c00 * x0 + c01 * x1, c01 * x0 + c11 * x1
        gain = 1.0 / (FORGETTING + x0 * p0 + x1 * p1)
        self.s0 = self._moved(self.s0 + gain * p0 * error * prior.s0, prior.s0)
        self.alpha = self._moved(self.alpha + gain * p1 * error * prior.alpha, prior.alpha)
        self._cov = self._bounded(
            (c00 - gain * p0 * p0) / FORGETTING,
            (c01 - gain * p0 * p1) / FORGETTING,
            (c11 - gain * p1 * p1) / FORGETTING,
        )

    def _bounded(self, c00: float, c01: float, c11: float) -> tuple[float, float, float]:
        # Calls of one size say nothing of how the time divides: without bound, forgetting would let
        # both constants drift against each other.
        first = min(1.0, (self._most / c00) ** 0.5) if c00 > 0 else 1.0
        second = min(1.0, (self._most / c11) ** 0.5) if c11 > 0 else 1.0
        return c00 * first * first, c01 * first * second, c11 * second * second

    def _moved(self, value: float, prior: float) -> float:
        return min(prior * self._clamp, max(prior / self._clamp, value))
