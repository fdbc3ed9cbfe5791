"""When to try again: backoff per call, and one budget for all calls of a client. Pure.

Retries help against single failures and harm in an overload, where they multiply the load that
caused it. So, besides the count per call, all retries of a client draw from one budget that its
calls fill: about a fifth of the recent calls may be repeated, plus a small floor so that a client
with few calls may retry too. (The scheme of Finagle's RetryBudget and of gRPC's retryThrottling.)
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable


class RetryBudget:
    """A token bucket: a call puts ``ratio`` tokens in, a retry takes one out. Thread-safe.

    Args:
        ratio: retries per call in the long run.
        floor: retries at hand at the start, and refilled within ``floor_period_s``.
        ceiling: most tokens, that is, the longest burst of retries.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        floor: float = 5.0,
        ceiling: float = 50.0,
        floor_period_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ratio, self._floor, self._ceiling = ratio, floor, ceiling
        self._refill_per_s = floor / floor_period_s
        self._clock = clock
        self._tokens = floor
        self._refilled_at = clock()
        self._lock = threading.Lock()

    def call_made(self) -> None:
        """A new call (not a retry) begins."""
        with self._lock:
            self._tokens = min(self._ceiling, self._tokens + self._ratio)

    def take(self) -> bool:
        """Whether a retry is allowed; it then counts."""
        with self._lock:
            now = self._clock()
            refill = (now - self._refilled_at) * self._refill_per_s
            self._refilled_at = now
            if self._tokens < self._floor:
                self._tokens = min(self._floor, self._tokens + refill)
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class RetryPlan:
    """The retries of one call.

    Args:
        retries: most repetitions.
        budget: shared by the calls of a client.
        deadline: moment (of ``clock``) after which nothing is begun any more.
        jitter: a number in [0, 1); it keeps clients from coming back in step.
    """

    def __init__(
        self,
        retries: int,
        budget: RetryBudget,
        deadline: float,
        *,
        first_delay_s: float = 0.25,
        max_delay_s: float = 8.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._left = retries
        self._budget = budget
        self._deadline = deadline
        self._delay = first_delay_s
        self._max_delay = max_delay_s
        self._clock = clock
        self._jitter = jitter
        self.made = 0
        budget.call_made()

    def delay_after_failure(self, retry_after_s: float | None) -> float | None:
        """Seconds to wait before the next attempt, or None: give up.

        Args:
            retry_after_s: the wait that the server asked for, if it did.
        """
        if self._left <= 0:
            return None
        if retry_after_s is None:
            delay = self._delay * (0.5 + self._jitter() / 2)
        else:
            # Not before the server said; a little later, so that not all come back at once.
            delay = retry_after_s * (1 + self._jitter() / 10)
        if self._clock() + delay >= self._deadline or not self._budget.take():
            return None
        self._left -= 1
        self.made += 1
        self._delay = min(self._max_delay, self._delay * 2)
        return delay
