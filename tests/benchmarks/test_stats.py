"""Intervals and quantiles against known cases and invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.stats import (
    interval,
    paired_ratio,
    quantile,
    samples_needed,
    student_quantile,
    unpaired_ratio,
)
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

positive = st.floats(min_value=1e-3, max_value=1e6)
samples = st.lists(positive, min_size=1, max_size=20)
statistic = st.sampled_from(["mean", "median"])
method = st.sampled_from(["percentile", "bca"])


@settings(deadline=None, max_examples=60)
@given(samples, statistic, method)
def test_interval_contains_its_estimate(values: list[float], stat: str, how: str) -> None:
    found = interval(values, stat, method=how, resamples=200)
    expected = np.mean(values) if stat == "mean" else np.median(values)
    assert found.estimate == pytest.approx(expected)
    assert found.low <= found.estimate <= found.high


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20), statistic, method)
def test_ratio_contains_its_estimate(pairs: list[tuple[float, float]], stat: str, how: str) -> None:
    above, below = zip(*pairs, strict=True)
    found = paired_ratio(above, below, stat, method=how, resamples=200)
    assert found.contains(found.estimate)


@settings(deadline=None, max_examples=30)
@given(st.lists(positive, min_size=2, max_size=20), statistic)
def test_a_system_beside_itself_has_ratio_one(values: list[float], stat: str) -> None:
    found = paired_ratio(values, values, stat, resamples=200)
    assert (found.low, found.estimate, found.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("rounds", [5, 7, 15])
@pytest.mark.parametrize("stat", ["mean", "median"])
def test_equal_systems_straddle_one_nearly_always(rounds: int, stat: str) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        a, b = rng.normal(10, 1, rounds), rng.normal(10, 1, rounds)
        hits += paired_ratio(a, b, stat, resamples=500).contains(1.0)
    # The plain percentile bootstrap covers some 83 % with five rounds.
    assert hits / 200 >= 0.9


def test_paired_ratio_cancels_what_slows_the_whole_machine() -> None:
    slow = np.array([1.0, 5.0, 2.0, 9.0, 1.5, 3.0])
    paired = paired_ratio(2 * slow, slow)
    apart = unpaired_ratio(2 * slow, slow)
    assert (paired.low, paired.high) == pytest.approx((2, 2))
    assert apart.low < 1.5 < 2.5 < apart.high


def test_a_mean_has_the_width_of_students_interval() -> None:
    values = np.random.default_rng(0).normal(0, 1, 12)
    found = interval(values, "mean")
    # Student's with the bootstrap's own spread, which divides by n instead of n - 1.
    half = student_quantile(0.975, 11) * values.std(ddof=1) / math.sqrt(12)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_seed_decides() -> None:
    values = np.random.default_rng(0).normal(0, 1, 20)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_one_round_says_nothing_about_the_spread() -> None:
    found = interval([3.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.to_json() == {
        "estimate": 3.0,
        "low": None,
        "high": None,
        "n": 1,
        "confidence": 0.95,
    }


def test_bca_leans_the_way_of_a_skewed_sample() -> None:
    skewed = np.random.default_rng(5).lognormal(0, 1, 30)
    assert interval(skewed, method="bca").high > interval(skewed, method="percentile").high


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_student_quantile(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=2e-3)


def test_tail_quantiles_need_enough_samples() -> None:
    assert samples_needed(0.9) == 64
    assert samples_needed(0.99) == 662
    assert samples_needed(0.01) == 662
    values = list(range(661))
    assert quantile(values, 0.99) is None
    assert quantile([*values, 661], 0.99) == pytest.approx(654.39)
    assert quantile([1, 2, 3], 0.5) == 2


def test_bad_input_is_named() -> None:
    with pytest.raises(BenchmarkError, match="no measurements"):
        interval([])
    with pytest.raises(BenchmarkError, match="not finite"):
        interval([1.0, math.nan])
    with pytest.raises(BenchmarkError, match="2 and 1 values"):
        paired_ratio([1, 2], [1])
    with pytest.raises(BenchmarkError, match="must be positive"):
        paired_ratio([1, 2], [1, 0])
    with pytest.raises(UnknownNameError, match="Known: mean, median"):
        interval([1, 2], "mode")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Known: bca, percentile"):
        interval([1, 2], method="t")  # type: ignore[arg-type]
    with pytest.raises(BenchmarkError, match="confidence"):
        interval([1, 2], confidence=95)
    with pytest.raises(BenchmarkError, match="quantile"):
        samples_needed(1)
