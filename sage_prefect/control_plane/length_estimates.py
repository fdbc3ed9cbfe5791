"""How long prompts and answers are likely to be, learned from what engines report in ``usage``.

Both tables are bounded: a full one forgets the key that was learned longest ago. Reading and
learning are O(1).
"""

from __future__ import annotations

import math

from sage_prefect.control_plane.event_bounds import MAX_TOKENS

FIRST_GUESS_BYTES_PER_TOKEN = 4.0
DEFAULT_OUTPUT_TOKENS = 256
OUTPUT_QUANTILE = 0.7

_KEPT = 4096
# The first guess counts as much as one prompt of this length, and fades like any other.
_FIRST_GUESS = (FIRST_GUESS_BYTES_PER_TOKEN * 100.0, 100.0)
_FORGETTING = 0.98
_LEAST_RATIO, _MOST_RATIO = 0.25, 64.0
_LEAST_STEP = 0.04


class BytesPerToken:
    """Bytes of a request's body per prompt token, by model.

    The ratio of sums with forgetting, not the mean of ratios: the JSON around a short prompt says
    little of the text in a long one, and the long ones are what load depends on.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def __getitem__(self, model: str) -> float:
        sums = self._sums.get(model)
        return FIRST_GUESS_BYTES_PER_TOKEN if sums is None else sums[0] / sums[1]

    def learn(self, model: str, body_bytes: int, prompt_tokens: int) -> None:
        """Take in one request: bytes as sent, tokens as the engine counted them."""
        if not (0 < prompt_tokens <= MAX_TOKENS and body_bytes > 0):
            return
        seen = min(_MOST_RATIO, max(_LEAST_RATIO, body_bytes / prompt_tokens))
        # Taken out and put back, so that the first key is the one learned longest ago.
        bytes_, tokens = self._sums.pop(model, _FIRST_GUESS)
        if len(self._sums) >= _KEPT:
            del self._sums[next(iter(self._sums))]
        self._sums[model] = (
            _FORGETTING * bytes_ + seen * prompt_tokens,
            _FORGETTING * tokens + prompt_tokens,
        )


class OutputLengths:
    """The 70 % quantile of answers' lengths in tokens, by tenant and model.

    Stochastic approximation of a quantile (Robbins and Monro 1951; Tierney 1983) on the logarithm:
    an answer that is longer than the estimate raises it by ``0.7 * step``, a shorter one lowers it
    by ``0.3 * step``. The step falls as 1/n to a floor, so that it goes on following.
    """

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], tuple[float, int]] = {}

    def estimate(self, tenant: str, model: str) -> int:
        """Likely length of the next answer in tokens; 256 as long as nothing is known."""
        learned = self._learned.get((tenant, model))
        return DEFAULT_OUTPUT_TOKENS if learned is None else round(learned[0])

    def learn(self, tenant: str, model: str, output_tokens: int) -> None:
        """Take in the length of one answer."""
        if not 0 < output_tokens <= MAX_TOKENS:
            return
        key = (tenant, model)
        learned = self._learned.pop(key, None)
        if learned is None:
            if len(self._learned) >= _KEPT:
                del self._learned[next(iter(self._learned))]
            self._learned[key] = (float(output_tokens), 1)
            return
        value, count = learned
        step = max(_LEAST_STEP, 1.0 / (count + 1))
        if output_tokens > value:
            value = min(value * math.exp(step * OUTPUT_QUANTILE), float(MAX_TOKENS))
        elif output_tokens < value:
            value = max(value * math.exp(-step * (1.0 - OUTPUT_QUANTILE)), 1.0)
        self._learned[key] = (value, count + 1)
