"""Limits per key and tenant: reserve, settle, refuse."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage_gateway.errors import HttpError
from sage_gateway.rate_limits import Bucket, Lease, Meter, RateLimit, rate_headers, reserve


def meter(now: float = 0.0, **limit: int) -> Meter:
    return Meter("key 'k'", RateLimit(**limit), now)


def refused(caught: pytest.ExceptionInfo[HttpError]) -> tuple[str | None, bytes | None]:
    return caught.value.code, dict(caught.value.headers).get(b"retry-after")


def test_requests_per_minute_flow_in_evenly() -> None:
    limited = meter(rpm=2)
    for _ in range(2):
        reserve((limited,), 1, 1, 0.0).close(0.0, answered=True)
    with pytest.raises(HttpError, match=r"key 'k' is reached: 2 requests per minute") as caught:
        reserve((limited,), 1, 1, 0.0)
    assert refused(caught) == ("rate_limit_exceeded", b"30")
    assert caught.value.status == 429
    with pytest.raises(HttpError):
        reserve((limited,), 1, 1, 29.9)
    reserve((limited,), 1, 1, 30.1)


def test_tokens_are_reserved_before_and_settled_after() -> None:
    limited = meter(tpm=600)
    lease = reserve((limited,), 100, 500, 0.0)
    assert limited.tokens is not None
    assert limited.tokens.level(0.0) == 100
    with pytest.raises(HttpError, match="600 tokens per minute"):
        reserve((limited,), 50, 200, 0.0)
    lease.used(150)
    lease.close(0.0, answered=True)
    assert limited.tokens.level(0.0) == 450
    overdrawn = reserve((limited,), 10, 400, 0.0)
    overdrawn.used(900)
    overdrawn.close(0.0, answered=True)
    assert limited.tokens.level(0.0) == -450
    with pytest.raises(HttpError) as caught:
        reserve((limited,), 1, 10, 0.0)
    assert refused(caught) == ("rate_limit_exceeded", b"46")


def test_who_gets_no_answer_pays_no_tokens_and_who_gets_some_pays_what_was_reserved() -> None:
    limited = meter(tpm=600, rpm=10)
    reserve((limited,), 100, 500, 0.0).close(0.0, answered=False)
    assert limited.tokens is not None
    assert limited.requests is not None
    assert limited.tokens.level(0.0) == 600
    assert limited.requests.level(0.0) == 9
    broken = reserve((limited,), 100, 500, 0.0)
    broken.close(0.0, answered=True)
    broken.close(0.0, answered=False)  # a second time changes nothing
    assert limited.tokens.level(0.0) == 100
    assert limited.running == 0


def test_a_prompt_over_the_limit_can_never_be_served() -> None:
    limited = meter(tpm=100)
    with pytest.raises(HttpError, match="can never be served") as caught:
        reserve((limited,), 101, 101, 0.0)
    assert refused(caught) == ("request_over_limit", None)
    reserve((limited,), 50, 5000, 0.0)  # a long answer may be a short one


def test_requests_at_once() -> None:
    limited = meter(max_parallel_requests=1)
    lease = reserve((limited,), 1, 1, 0.0)
    with pytest.raises(HttpError, match="1 requests at once") as caught:
        reserve((limited,), 1, 1, 0.0)
    assert refused(caught) == ("rate_limit_exceeded", b"1")
    lease.close(0.0, answered=True)
    reserve((limited,), 1, 1, 0.0)


def test_refused_by_one_limit_takes_nothing_of_another() -> None:
    key, tenant = meter(rpm=10, tpm=100), meter(max_parallel_requests=0)
    with pytest.raises(HttpError):
        reserve((key, tenant), 10, 10, 0.0)
    assert key.requests is not None
    assert key.tokens is not None
    assert (key.requests.level(0.0), key.tokens.level(0.0), key.running) == (10, 100, 0)


def test_headers_show_the_limit_with_least_left() -> None:
    key, tenant = meter(rpm=100, tpm=6000), meter(rpm=10)
    reserve((key, tenant), 100, 1000, 0.0)
    headers = dict(rate_headers((key, tenant), 0.0))
    assert headers == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"6.0s",
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"5000",
        b"x-ratelimit-reset-tokens": b"10.0s",
    }
    assert rate_headers((meter(max_parallel_requests=1),), 0.0) == []
    drawn = meter(rpm=600)
    reserve((drawn,), 1, 1, 0.0)
    assert dict(rate_headers((drawn,), 0.0))[b"x-ratelimit-reset-requests"] == b"100ms"
    empty = meter(tpm=60)
    reserve((empty,), 1, 60, 0.0).used(95)
    empty.tokens.take(35, 0.0)  # type: ignore[union-attr]
    assert dict(rate_headers((empty,), 0.0))[b"x-ratelimit-reset-tokens"] == b"1m35s"


def test_other_limits_keep_what_has_been_used() -> None:
    limited = meter(rpm=10)
    for _ in range(4):
        reserve((limited,), 1, 1, 0.0)
    limited.change(RateLimit(rpm=6, tpm=50), 0.0)
    assert limited.requests is not None
    assert limited.requests.level(0.0) == 2
    assert limited.tokens is not None
    assert limited.tokens.level(0.0) == 50
    limited.change(RateLimit(), 0.0)
    assert limited.requests is None
    assert limited.running == 4


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == 1


class Limiter(RuleBasedStateMachine):
    """Any sequence of requests against one key in one tenant."""

    KEY = RateLimit(rpm=5, tpm=1000, max_parallel_requests=3)
    TENANT = RateLimit(rpm=8, tpm=1500, max_parallel_requests=4)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.key = Meter("key", self.KEY, 0.0)
        self.tenant = Meter("tenant", self.TENANT, 0.0)
        self.open: list[tuple[Lease, int]] = []
        self.begun: deque[float] = deque()
        self.settled: deque[tuple[float, int]] = deque()

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(prompt=st.integers(0, 1200), answer=st.integers(0, 600))
    def request(self, prompt: int, answer: int) -> None:
        before = self.snapshot()
        try:
            lease = reserve((self.key, self.tenant), prompt, prompt + answer, self.now)
        except HttpError as error:
            refusal = error
        else:
            self.open.append((lease, prompt + answer))
            self.begun.append(self.now)
            return
        assert refusal.status == 429
        assert self.snapshot() == before
        wait = dict(refusal.headers).get(b"retry-after")
        assert (wait is None) == (refusal.code == "request_over_limit")

    @precondition(lambda self: self.open)
    @rule(used=st.none() | st.integers(0, 3000), answered=st.booleans(), data=st.data())
    def ends(self, used: int | None, answered: bool, data: st.DataObject) -> None:
        lease, reserved = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if answered:
            lease.used(used)
        lease.close(self.now, answered=answered)
        if answered:
            self.settled.append((self.now, reserved if used is None else used))

    @invariant()
    def limits_hold(self) -> None:
        assert self.key.running == self.tenant.running == len(self.open) <= 3
        # A bucket lets through what it held and what has flowed in: never more than two minutes'
        # worth in a minute.
        recent = [at for at in self.begun if at > self.now - 60]
        assert len(recent) <= 2 * 5
        for limited in (self.key, self.tenant):
            assert limited.requests is not None
            assert limited.tokens is not None
            assert -1e-6 <= limited.requests.level(self.now) <= limited.requests.capacity
            assert limited.tokens.level(self.now) <= limited.tokens.capacity
        for _, value in rate_headers((self.key, self.tenant), self.now)[0:2]:
            assert int(value) >= 0

    @invariant()
    def at_rest_the_books_balance(self) -> None:
        """What is missing from a bucket has been used, and has not flowed in again."""
        if self.open:
            return
        tokens = self.key.tokens
        assert tokens is not None
        missing = tokens.capacity - tokens.level(self.now)
        assert missing <= sum(used for _, used in self.settled) + 1e-6

    def snapshot(self) -> list[float]:
        return [
            value
            for limited in (self.key, self.tenant)
            for value in (
                limited.requests.level(self.now),  # type: ignore[union-attr]
                limited.tokens.level(self.now),  # type: ignore[union-attr]
                float(limited.running),
            )
        ]


TestLimiter = Limiter.TestCase


@given(capacity=st.integers(1, 10**6), takes=st.lists(st.floats(0, 100), max_size=20))
def test_after_the_wait_there_is_enough(capacity: int, takes: list[float]) -> None:
    bucket = Bucket(capacity, 0.0)
    for amount in takes:
        bucket.take(amount, 0.0)
    wait = bucket.wait_s(1, 0.0)
    assert bucket.level(wait + 1e-6) >= 1 - 1e-6
