"""How many tokens one call may hold.

A call cannot be interrupted: who arrives meanwhile waits for its end. So a call lasts at most half
of the time that latency requests have, but not so short that its fixed cost weighs: at
``4 * s0 / alpha`` tokens an engine reaches 80 % of its best rate.
"""

from __future__ import annotations

import math

from sage_prefect.control_plane.events import Band, EngineSpec
from sage_prefect.control_plane.executors.embedding_cost import EmbeddingCost

SLACK_SHARE = 0.5
AMORTISED = 4.0
CPU_TOKENS, GPU_TOKENS = 2048, 8192
_FALL, _RISE = 0.3, 0.02
_REMEMBERED_S = 60.0


class LatencySlack:
    """The time that critical and interactive requests have from arrival to deadline, in seconds.

    Follows shorter ones fast and longer ones slowly: about their 5th percentile. Infinite when
    none came for a minute.
    """

    __slots__ = ("_seen_at", "_value")

    def __init__(self) -> None:
        self._value = math.inf
        self._seen_at = -math.inf

    def saw(self, band: Band, arrived: float, deadline: float) -> None:
        """A request has arrived."""
        slack = deadline - arrived
        if band > Band.INTERACTIVE or not 0 < slack < math.inf:
            return
        if self.at(arrived) == math.inf:
            self._value = slack
        else:
            self._value += (_FALL if slack < self._value else _RISE) * (slack - self._value)
        self._seen_at = max(self._seen_at, arrived)

    def at(self, now: float) -> float:
        """The slack that calls have to leave room for."""
        return self._value if now - self._seen_at <= _REMEMBERED_S else math.inf


def most_tokens(spec: EngineSpec) -> int:
    """Tokens of one call of this engine, whatever the time."""
    if spec.max_batch_tokens is not None and spec.max_batch_tokens > 0:
        return spec.max_batch_tokens
    return CPU_TOKENS if spec.device == "cpu" else GPU_TOKENS


def call_budget(cost: EmbeddingCost, most: float, slack_s: float) -> float:
    """Tokens of one call beside requests that have ``slack_s``, up to ``most``."""
    return _within(cost, most, SLACK_SHARE * slack_s)


def affordable(cost: EmbeddingCost, budget: float, seconds: float, tokens: float) -> float:
    """Tokens of a call that should end within ``seconds``, up to ``budget``.

    A call whose first input of ``tokens`` is late even alone gets the whole budget: nothing is won
    by small calls then, and the queue behind it is served sooner.
    """
    if cost.call_s(tokens) > seconds:
        return budget
    return _within(cost, budget, seconds)


def worthwhile(cost: EmbeddingCost) -> float:
    """Tokens below which a call's fixed cost weighs."""
    return AMORTISED * cost.s0 / cost.alpha


def _within(cost: EmbeddingCost, most: float, seconds: float) -> float:
    if seconds == math.inf:
        return most
    return min(most, max(1.0, worthwhile(cost), (seconds - cost.s0) / cost.alpha))
