"""How fast an engine is: an affine model of its iterations, corrected by what it does.

One iteration with n decoding sequences and C tokens of their context takes ``c0 + b*n + g*C``;
p prefill tokens in it add ``a*p``. While prefill arrives at a rate of pi tokens per second, the
share ``a*pi`` of the time goes to it: a token comes every ``(c0 + b*n + g*C) / (1 - a*pi)``.
The constants start from the engine's profile and follow measurements by recursive least squares
with forgetting, within a factor of ``CLAMP`` of the prior; what the form of the model cannot
express of the time to first token is left to a slow residual factor.
"""

from __future__ import annotations

from collections.abc import Iterable

from sage_prefect.control_plane.events import EngineProfile

CLAMP = 4.0
FORGETTING = 0.995
_RESIDUAL_RATE = _PREFILL_RATE = 0.05
_LONG_PROMPT, _SHORT_PROMPT, _LATE = 256, 32, 4.0
"""Tokens of a prompt that tells the time of prefill; of an unknown engine, fewer where the first
token takes so many decode steps, as on CPUs."""
_MAX_PREFILL_SHARE = 0.8
# A model of which nothing is known: a small LLM on a CPU or a large one on a GPU, within a factor
# of ten; the first samples move it without a clamp.
UNKNOWN = EngineProfile(c0=0.02, a=1e-4, b=5e-4, g=2e-7, s0=0.005, alpha=5e-5, source="unknown")


# Variances over that of a sample's error (about 10 ms): a given profile is right within a third.
_TRUSTED, _UNTRUSTED = (1.0, 0.04, 0.03), (10.0, 10.0, 10.0)


def fleet_profile(models: Iterable[EngineModel]) -> EngineProfile | None:
    """What engines like a new one have come to: each constant's median; None: nothing is known."""
    known = [model for model in models if model.known]
    if not known:
        return None
    c0, a, b, g = (
        sorted(getattr(model, name) for model in known)[len(known) // 2]
        for name in ("c0", "a", "b", "g")
    )
    return EngineProfile(c0=c0, a=a, b=b, g=g, source="fleet")


class EngineModel:
    """Predicts time to first token and time per output token of one engine, in seconds.

    Args:
        prior: the engine's profile; one without a step's time counts as none.
        fleet: what its like have come to, where it has no profile.
    """

    __slots__ = (
        "_cov",
        "_most",
        "_prefills",
        "_prior",
        "_scale",
        "a",
        "b",
        "c0",
        "g",
        "known",
        "kt",
        "reference",
        "samples",
    )

    def __init__(self, prior: EngineProfile | None, fleet: EngineProfile | None = None) -> None:
        if prior is None or prior.c0 + prior.b <= 0:
            prior = fleet
        self.known = prior is not None and prior.c0 + prior.b > 0
        """Whether a prior was given, or enough was seen to trust the model."""
        base = prior if prior is not None and self.known else UNKNOWN
        self._prior = base
        self.c0, self.a, self.b, self.g = base.c0, base.a, base.b, base.g
        self.kt = 1.0
        self.samples = 0
        self._prefills = 0
        # Inputs are scaled to about 1, so that one forgetting factor serves all three.
        self._scale = (1.0, 1 / 32, 1 / 32_768)
        trust = _UNTRUSTED if base is UNKNOWN else _TRUSTED
        self._most = trust
        self._cov = [[trust[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.reference: EngineProfile | EngineModel = self if base is UNKNOWN else base
        """What costs are told by: the profile that was given, which does not move, else this."""

    # -- predictions ----------------------------------------------------------------------

    def iteration_s(self, n: float, context: float) -> float:
        """One decode iteration of ``n`` sequences with ``context`` tokens in all."""
        return self.c0 + self.b * n + self.g * context

    def tpot_s(self, n: float, context: float, prefill_rate: float) -> float:
        """Time per output token while ``prefill_rate`` prompt tokens arrive per second."""
        share = self.a * prefill_rate
        if share > _MAX_PREFILL_SHARE:
            share = _MAX_PREFILL_SHARE
        return (self.c0 + self.b * n + self.g * context) / (1.0 - share)

    def ttft_s(self, ahead: float, prompt: float, n: float, context: float, budget: float) -> float:
        """Time until the first token of a prompt of ``prompt`` uncached tokens.

        Args:
            ahead: uncached tokens of prompts that the engine has got before.
            budget: tokens of one iteration: each chunk of prefill carries a decode step along.
        """
        step = self.c0 + self.b * n + self.g * context
        tokens = ahead + prompt
        return self.kt * (self.a * tokens + step * (1.0 + tokens / budget))

    # -- learning -------------------------------------------------------------------------

    def saw_step(self, seconds: float, n: float, context: float) -> None:
        """A stream's time per token while nothing but decoding went on, with this load."""
        if not 0 < seconds < 60:
            return
        # One stall is one sample; what is really slower by more shows again in the next ones.
        self._fit(min(seconds, CLAMP * self.iteration_s(n, context)), n, context)
        self.samples += 1
        if self.samples >= 16:
            self.known = True

    def saw_ttft(
        self, seconds: float, ahead: float, prompt: float, n: float, context: float, budget: float
    ) -> None:
        """A request's time from its dispatch to its first token, with the load at its dispatch."""
        step = self.c0 + self.b * n + self.g * context
        tokens = ahead + prompt
        predicted = self.kt * (self.a * tokens + step * (1.0 + tokens / budget))
        if not 0 < seconds < 600 or predicted <= 0:
            return
        # Alone in the queue: what the decode step (and the one under way) leaves is prefill.
        under_way = step * (1.5 + prompt / budget)
        unknown = self._prior is UNKNOWN
        shortest = _SHORT_PROMPT if unknown and seconds > _LATE * under_way else _LONG_PROMPT
        if ahead <= 0.0 and prompt > shortest:
            seen = (seconds - under_way) / prompt
            low, high = self._bounds(self._prior.a)
            rate = _PREFILL_RATE
            if unknown:
                # The mean of what was seen, until there is enough to forget the first of it.
                self._prefills += 1
                rate = max(rate, 1.0 / self._prefills)
            self.a = min(high, max(low, self.a + rate * (min(high, seen) - self.a)))
            if rate > _PREFILL_RATE:
                predicted = self.ttft_s(ahead, prompt, n, context, budget)
        ratio = min(CLAMP, max(1 / CLAMP, seconds / predicted))
        kt = self.kt + _RESIDUAL_RATE * (ratio * self.kt - self.kt)
        self.kt = min(CLAMP, max(1 / CLAMP, kt))

    # -- inside ---------------------------------------------------------------------------

    def _fit(self, seconds: float, n: float, context: float) -> None:
        """One step of recursive least squares for (c0, b, g)."""
        x = (self._scale[0], n * self._scale[1], context * self._scale[2])
        cov = self._cov
        px = [row[0] * x[0] + row[1] * x[1] + row[2] * x[2] for row in cov]
        gain = 1.0 / (FORGETTING + x[0] * px[0] + x[1] * px[1] + x[2] * px[2])
        error = seconds - (self.c0 + self.b * n + self.g * context)
        step = [gain * error * px[i] * self._scale[i] for i in range(3)]
        # Both halves from one: forgetting would blow up the rounding errors between them.
        for i in range(3):
            for j in range(i, 3):
                cov[i][j] = cov[j][i] = (cov[i][j] - gain * px[i] * px[j]) / FORGETTING
        for i in range(3):
            # Sequences and context rise and fall together: without bound, forgetting would let the
            # fit drift along what the load never varies.
            most = self._most[i]
            if cov[i][i] > most:
                shrink = (most / cov[i][i]) ** 0.5
                for j in range(3):
                    cov[i][j] = cov[j][i] = cov[i][j] * shrink
                cov[i][i] = most
        self._move([self.c0 + step[0], self.b + step[1], self.g + step[2]])

    def _move(self, fitted: list[float]) -> None:
        """Take over constants, each within its bounds.

        One that would leave them is held there, and the others move along its column of the
        covariance, to the constrained optimum. If it were only cut off, they would go on balancing
        steps that it does not make, and diverge.
        """
        prior, cov, scale = self._prior, self._cov, self._scale
        bounds = [self._bounds(value) for value in (prior.c0, prior.b, prior.g)]
        for i in (0, 1, 2):
            low, high = bounds[i]
            excess = fitted[i] - min(high, max(low, fitted[i]))
            if excess:
                share = excess / (scale[i] * cov[i][i])
                for j in (0, 1, 2):
                    fitted[j] -= share * cov[j][i] * scale[j]
        self.c0, self.b, self.g = (
            min(high, max(low, value)) for value, (low, high) in zip(fitted, bounds, strict=True)
        )

    def _bounds(self, prior: float) -> tuple[float, float]:
        wide = CLAMP if self._prior is not UNKNOWN else 100.0
        return prior / wide, prior * wide
