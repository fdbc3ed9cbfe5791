"""Demand of embedding calls: even while it only varies by chance, quick where it jumps."""

from __future__ import annotations

from random import Random

import pytest

from sage_prefect.control_plane.embedding_demand import FAST_S, TAU_S, EmbeddingDemand


def ask(demand: EmbeddingDemand, rng: Random, rate: float, start: float, seconds: float) -> float:
    """Calls at random, ``rate`` a second, of 1,000 tokens on average; returns the time after."""
    now = start
    while (now := now + rng.expovariate(rate)) < start + seconds:
        demand.asked(rng.expovariate(1e-3), now)
    return start + seconds


def test_the_rate_is_found_and_forgotten() -> None:
    demand = EmbeddingDemand()
    now = 0.0
    while now < 10 * TAU_S:
        now += 0.01
        demand.asked(10.0, now)
    assert demand.rate(now) == pytest.approx(1000.0, rel=0.01)
    assert demand.rate(now + 10 * TAU_S) < 1.0
    assert EmbeddingDemand().rate(5.0) == 0.0


@pytest.mark.parametrize(("before", "after"), [(2.0, 40.0), (40.0, 2.0)])
def test_a_jump_is_followed_much_sooner_than_by_the_slow_mean(before: float, after: float) -> None:
    for seed in range(5):
        demand, rng = EmbeddingDemand(), Random(seed)
        now = 0.0
        for _ in range(200):
            now = ask(demand, rng, before, now, 0.5)
            demand.rate(now)
        for _ in range(10):
            now = ask(demand, rng, after, now, 0.5)
            demand.rate(now)
        # In 5 s a mean over TAU_S has gone 40 % of the way.
        left = abs(demand.rate(now) - 1000.0 * after) / (1000.0 * abs(after - before))
        assert left < 0.35


def test_chance_moves_the_rate_as_little_as_the_slow_mean_does() -> None:
    demand, rng = EmbeddingDemand(), Random(3)
    seen, now = [], ask(demand, rng, 20.0, 0.0, 10 * TAU_S)
    for _ in range(1200):
        now = ask(demand, rng, 20.0, now, 0.5)
        seen.append(demand.rate(now))
    mean = sum(seen) / len(seen)
    spread = (sum((x - mean) ** 2 for x in seen) / len(seen)) ** 0.5
    assert mean == pytest.approx(20_000.0, rel=0.05)
    # A shot noise of rate 20 and mean square 2e6 over 2 TAU: 1,414; over 2 FAST_S: 3,162.
    slow, fast = (20.0 * 2e6 / (2 * tau) for tau in (TAU_S, FAST_S))
    assert spread < 0.5 * (slow**0.5 + fast**0.5)
