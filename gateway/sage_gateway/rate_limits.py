"""Limits per key and tenant: requests and tokens per minute, and requests at once.

Token buckets (Turner 1986): each fills by its limit per minute up to that limit, so that a minute's
worth may come in one burst. Tokens are reserved by estimate before a request is served and settled
by the engine's ``usage`` after it; a bucket that a long answer has overdrawn fills up before it
gives anything again. All state lives in this process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sage_gateway.errors import HttpError
from sage_gateway.reply import HeaderList

_MINUTE_S = 60.0
_BUSY_RETRY_S = 1
"""When one of a caller's requests ends is not known; they last seconds."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a key or tenant may use; None: not limited."""

    rpm: int | None = None
    """Requests per minute."""
    tpm: int | None = None
    """Tokens per minute, prompts and answers."""
    max_parallel_requests: int | None = None
    """Requests that wait or run at once."""

    def __bool__(self) -> bool:
        return self != UNLIMITED


UNLIMITED = RateLimit()


class Bucket:
    """A token bucket. Times are seconds of a monotonic clock.

    Args:
        capacity: what it holds, and what flows in per minute.
    """

    __slots__ = ("_at", "_level", "capacity")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._at = now

    def level(self, now: float) -> float:
        """What is in it; below zero: it is overdrawn."""
        if now > self._at:
            inflow = (now - self._at) * self.capacity / _MINUTE_S
            self._level = min(float(self.capacity), self._level + inflow)
            self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take out, whether it is there or not; a negative amount is put back."""
        self._level = min(float(self.capacity), self.level(now) - amount)

    def wait_s(self, amount: float, now: float) -> float:
        """Until so much is in it; 0: it is."""
        missing = min(amount, self.capacity) - self.level(now)
        return max(0.0, missing * _MINUTE_S / self.capacity)

    def resized(self, capacity: int | None, now: float) -> Bucket | None:
        """One of another capacity from which as much has been taken."""
        if capacity is None:
            return None
        other = Bucket(capacity, now)
        other.take(self.capacity - self.level(now), now)
        return other


class Meter:
    """What one key or tenant has used.

    Args:
        who: for messages, such as ``key 'ci'``.
    """

    def __init__(self, who: str, limit: RateLimit, now: float) -> None:
        self.who = who
        self.limit = limit
        self.requests = None if limit.rpm is None else Bucket(limit.rpm, now)
        self.tokens = None if limit.tpm is None else Bucket(limit.tpm, now)
        self.running = 0
        """Requests that wait or run."""

    def change(self, limit: RateLimit, now: float) -> None:
        """Other limits from now on; what has been used stays used."""
        if limit.rpm != self.limit.rpm:
            self.requests = _resized(self.requests, limit.rpm, now)
        if limit.tpm != self.limit.tpm:
            self.tokens = _resized(self.tokens, limit.tpm, now)
        self.limit = limit

    def public(self, now: float) -> dict[str, object]:
        """For the management API."""
        return {
            "who": self.who,
            **asdict(self.limit),
            "running": self.running,
            "requests_left": None if self.requests is None else self.requests.level(now),
            "tokens_left": None if self.tokens is None else self.tokens.level(now),
        }

    def refusal(self, prompt_tokens: int, tokens: int, now: float) -> HttpError | None:
        """Why a request may not begin now; None: it may."""
        limit = self.limit
        if limit.max_parallel_requests is not None and self.running >= limit.max_parallel_requests:
            most = limit.max_parallel_requests
            return self._refused(f"{most} requests at once", _BUSY_RETRY_S)
        if self.requests is not None and (wait := self.requests.wait_s(1, now)):
            return self._refused(f"{limit.rpm} requests per minute", wait)
        if self.tokens is not None:
            if prompt_tokens > self.tokens.capacity:
                return HttpError(
                    429,
                    f"The request has about {prompt_tokens} tokens; the limit of {self.who} is "
                    f"{limit.tpm} tokens per minute, so it can never be served. Send less at once.",
                    code="request_over_limit",
                )
            if wait := self.tokens.wait_s(tokens, now):
                return self._refused(f"{limit.tpm} tokens per minute", wait)
        return None

    def _refused(self, what: str, wait_s: float) -> HttpError:
        seconds = max(1, math.ceil(wait_s))
        return HttpError(
            429,
            f"The rate limit of {self.who} is reached: {what}. Try again in {seconds} s.",
            code="rate_limit_exceeded",
            headers=((b"retry-after", b"%d" % seconds),),
        )


class Lease:
    """A request that has begun: give it back by :meth:`close`, whatever becomes of it."""

    __slots__ = ("_is_open", "_meters", "_reserved", "_used")

    def __init__(self, meters: tuple[Meter, ...], reserved: int) -> None:
        self._meters = meters
        self._reserved = reserved
        self._used: int | None = None
        self._is_open = True

    def used(self, tokens: int | None) -> None:
        """What the engine has counted; None: it did not say."""
        self._used = tokens

    def close(self, now: float, *, answered: bool) -> None:
        """The request has ended. One that got no answer has used no tokens, one whose engine did
        not count has used what was reserved; either stays a request.

        Args:
            answered: some of an answer has gone to the client.
        """
        if not self._is_open:
            return
        self._is_open = False
        used = self._used if self._used is not None else self._reserved if answered else 0
        for meter in self._meters:
            meter.running -= 1
            if meter.tokens is not None:
                reserved = min(self._reserved, meter.tokens.capacity)
                meter.tokens.take(used - reserved, now)


def reserve(meters: tuple[Meter, ...], prompt_tokens: int, tokens: int, now: float) -> Lease:
    """Begin a request under all of ``meters``, or under none.

    Args:
        prompt_tokens: estimate of the prompt alone.
        tokens: estimate of prompt and answer.

    Raises:
        HttpError: 429, which limit is reached and when to try again.
    """
    for meter in meters:
        refusal = meter.refusal(prompt_tokens, tokens, now)
        if refusal is not None:
            raise refusal
    for meter in meters:
        meter.running += 1
        if meter.requests is not None:
            meter.requests.take(1, now)
        if meter.tokens is not None:
            meter.tokens.take(min(tokens, meter.tokens.capacity), now)
    return Lease(meters, tokens)


def rate_headers(meters: tuple[Meter, ...], now: float) -> HeaderList:
    """OpenAI's ``x-ratelimit-*``: of several limits the one with least left."""
    headers: HeaderList = []
    for kind, buckets in (
        (b"requests", [m.requests for m in meters if m.requests is not None]),
        (b"tokens", [m.tokens for m in meters if m.tokens is not None]),
    ):
        if not buckets:
            continue
        tightest = min(buckets, key=lambda bucket: bucket.level(now))
        left = max(0, math.floor(tightest.level(now)))
        reset = _duration(tightest.wait_s(tightest.capacity, now))
        headers += [
            (b"x-ratelimit-limit-" + kind, b"%d" % tightest.capacity),
            (b"x-ratelimit-remaining-" + kind, b"%d" % left),
            (b"x-ratelimit-reset-" + kind, reset),
        ]
    return headers


def limited(meters: Iterable[Meter]) -> tuple[Meter, ...]:
    """Those that limit anything."""
    return tuple(meter for meter in meters if meter.limit)


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if bucket is not None:
        return bucket.resized(capacity, now)
    return None if capacity is None else Bucket(capacity, now)


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``2m3s``."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    if seconds < 60:
        return b"%.1fs" % seconds
    minutes, rest = divmod(math.ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest)
