from __future__ import annotations

from random import Random
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane import length_estimates
from sage_prefect.control_plane.length_estimates import (
    DEFAULT_OUTPUT_TOKENS,
    BytesPerToken,
    OutputLengths,
)


def test_the_ratio_is_that_of_the_long_prompts() -> None:
    ratios = BytesPerToken()
    assert ratios["m"] == 4.0
    for _ in range(200):
        ratios.learn("m", 300, 10)  # mostly JSON
        ratios.learn("m", 30_000, 10_000)
    assert 2.9 < ratios["m"] < 3.1
    assert ratios["other"] == 4.0


def test_the_first_answer_tells_more_than_the_default() -> None:
    lengths = OutputLengths()
    assert lengths.estimate("t", "m") == DEFAULT_OUTPUT_TOKENS
    lengths.learn("t", "m", 17)
    assert lengths.estimate("t", "m") == 17
    assert lengths.estimate("t", "other") == lengths.estimate("u", "m") == DEFAULT_OUTPUT_TOKENS


def test_equal_answers_are_estimated_exactly() -> None:
    lengths = OutputLengths()
    for _ in range(1000):
        lengths.learn("t", "m", 100)
    assert lengths.estimate("t", "m") == 100


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_it_stays_near_the_70_percent_quantile(sigma: float) -> None:
    rng = Random(5)
    lengths = OutputLengths()
    drawn, shares = [], []
    for n in range(4000):
        tokens = max(1, round(rng.lognormvariate(5.0, sigma)))
        drawn.append(tokens)
        if n > 200:
            shares.append(tokens <= lengths.estimate("t", "m"))
        lengths.learn("t", "m", tokens)
    assert 0.66 < sum(shares) / len(shares) < 0.74
    true = quantiles(drawn, n=10)[6]
    assert 0.7 * true < lengths.estimate("t", "m") < 1.4 * true


def test_it_follows_a_change() -> None:
    lengths = OutputLengths()
    for _ in range(500):
        lengths.learn("t", "m", 100)
    for _ in range(100):
        lengths.learn("t", "m", 800)
    assert lengths.estimate("t", "m") > 650
    for _ in range(250):
        lengths.learn("t", "m", 100)
    assert lengths.estimate("t", "m") < 125


def test_memory_is_bounded_and_the_stale_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_estimates, "_KEPT", 3)
    lengths, ratios = OutputLengths(), BytesPerToken()
    for name in ("a", "b", "c", "a", "d"):
        lengths.learn(name, "m", 10)
        ratios.learn(name, 2000, 1000)
    assert [lengths.estimate(name, "m") for name in "abcd"] == [10, DEFAULT_OUTPUT_TOKENS, 10, 10]
    assert [ratios[name] == 4.0 for name in "abcd"] == [False, True, False, False]
    assert len(lengths._learned) == len(ratios._sums) == 3


@given(st.lists(st.tuples(st.integers(), st.integers())))
def test_absurd_counts_do_no_harm(counts: list[tuple[int, int]]) -> None:
    lengths, ratios = OutputLengths(), BytesPerToken()
    for one, other in counts:
        lengths.learn("t", "m", one)
        ratios.learn("m", one, other)
    assert 1 <= lengths.estimate("t", "m") <= 1 << 32
    assert 0.25 <= ratios["m"] <= 64.0


def test_answers_of_one_token_stay_estimated_at_one() -> None:
    lengths = OutputLengths()
    lengths.learn("t", "m", 2)
    for _ in range(300):
        lengths.learn("t", "m", 1)
    assert lengths.estimate("t", "m") == 1
    lengths.learn("t", "m", 1000)
    assert lengths.estimate("t", "m") >= 1


def test_the_ratio_follows_another_kind_of_text() -> None:
    ratios = BytesPerToken()
    for _ in range(1000):
        ratios.learn("m", 4000, 1000)
    for _ in range(200):
        ratios.learn("m", 2000, 1000)
    assert 2.0 <= ratios["m"] < 2.1
