"""A claim passes on the conservative end of its interval only."""

from __future__ import annotations

import math

import pytest

from sage_bench.claims import Claim, Verdict, judge, noise_factor
from sage_bench.stats import Interval

AT_LEAST = Claim("rate", "at least 0.9 of the peer", "rate", "ours", ">=", 0.9, peer="theirs")
AT_MOST = Claim("time", "at most 0.3 s", "time", "ours", "<=", 0.3)


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        (AT_LEAST, 0.91, 0.99, Verdict.PASS),
        (AT_LEAST, 0.90, 0.99, Verdict.PASS),
        (AT_LEAST, 0.89, 0.99, Verdict.UNPROVED),
        (AT_LEAST, 0.70, 0.89, Verdict.FAIL),
        (AT_MOST, 0.10, 0.29, Verdict.PASS),
        (AT_MOST, 0.10, 0.30, Verdict.PASS),
        (AT_MOST, 0.10, 0.31, Verdict.UNPROVED),
        (AT_MOST, 0.31, 0.40, Verdict.FAIL),
        (AT_MOST, -math.inf, math.inf, Verdict.UNPROVED),
    ],
)
def test_verdict(claim: Claim, low: float, high: float, verdict: Verdict) -> None:
    estimate = (low + high) / 2 if math.isfinite(low) else 0.2
    assert judge(claim, Interval(estimate, low, high, 7)).verdict is verdict


def test_a_good_estimate_does_not_pass_by_itself() -> None:
    outcome = judge(AT_LEAST, Interval(2.0, 0.5, 3.0, 9))
    assert outcome.verdict is Verdict.UNPROVED
    assert "straddles 0.9" in outcome.reason


def test_few_rounds_prove_nothing() -> None:
    outcome = judge(AT_MOST, Interval(0.1, 0.1, 0.1, 4))
    assert outcome.verdict is Verdict.UNPROVED
    assert "4 rounds; 5 are needed" in outcome.reason


def test_failures_of_the_system_fail_the_claim_and_of_the_peer_leave_it_open() -> None:
    good = Interval(0.95, 0.93, 0.97, 7)
    assert judge(AT_LEAST, good, failures=1).verdict is Verdict.FAIL
    assert judge(AT_LEAST, good, peer_failures=1).verdict is Verdict.UNPROVED
    assert judge(AT_LEAST, None).verdict is Verdict.UNPROVED


def test_noise_that_excludes_one_widens_the_interval() -> None:
    good = Interval(0.95, 0.93, 0.97, 7)
    centred = Interval(1.0, 0.9, 1.1, 7)
    biased = Interval(1.1, 1.05, 1.2, 7)
    assert judge(AT_LEAST, good, noise=centred).verdict is Verdict.PASS
    outcome = judge(AT_LEAST, good, noise=biased)
    assert outcome.verdict is Verdict.UNPROVED
    assert "factor 1.050" in outcome.reason


def test_noise_factor() -> None:
    assert noise_factor(None) == 1
    assert noise_factor(Interval(0.8, 0.7, 0.8, 5)) == pytest.approx(1.25)
    assert noise_factor(Interval(1, -math.inf, math.inf, 1)) == 1


def test_outcome_is_plain_data() -> None:
    plain = judge(AT_MOST, Interval(0.1, 0.1, 0.2, 7)).to_json()
    assert plain["verdict"] == "PASS"
    assert plain["interval"]["high"] == 0.2
