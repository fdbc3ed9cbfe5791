"""When a live run agrees with its simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sage_bench.claims import Verdict
from sage_bench.live.agreement import TOLERANCES, Agreement
from sage_bench.live.agreement import compare as compare_four
from sage_bench.live.observation import METRICS, Observation
from sage_bench.live.report import markdown, print_agreement, to_json
from sage_prefect.common.errors import BenchmarkError


def observed(values: Any, *, done: Any = True, workload: str = "chat") -> Observation:
    column = np.asarray(values, dtype=float)
    n = len(column)
    return Observation(
        np.array([workload] * n),
        np.arange(n, dtype=float),
        np.full(n, done) if np.isscalar(done) else np.asarray(done),
        dict.fromkeys(METRICS, column),
    )


def latencies(n: int = 1000, seed: int = 0) -> Any:
    return np.random.default_rng(seed).lognormal(0, 0.5, n)


def compare(
    simulated: Observation, live: Observation, repeat: Observation, **options: Any
) -> Agreement:
    """Of a simulation that a slower network does not change."""
    return compare_four(simulated, live, repeat, simulated, **options)


def verdicts(agreement: Agreement) -> set[Verdict]:
    return {row.verdict for row in agreement.rows}


def test_equal_runs_agree_at_every_percentile() -> None:
    run = observed(latencies())
    agreement = compare(run, run, run)
    assert agreement.verdict is Verdict.PASS
    assert len(agreement.rows) == 3 * len(TOLERANCES)
    assert {row.allowed for row in agreement.rows} == set(TOLERANCES.values())


@pytest.mark.parametrize("factor", [0.5, 0.85, 1.25, 2.0])
def test_a_factor_is_found(factor: float) -> None:
    values = latencies()
    agreement = compare(observed(values), observed(factor * values), observed(factor * values))
    assert agreement.verdict is Verdict.FAIL
    assert agreement.rows[0].ratio.estimate == pytest.approx(factor)


def test_what_the_machine_cannot_repeat_is_allowed_for() -> None:
    values = latencies()
    agreement = compare(observed(values), observed(1.12 * values), observed(1.2 * values))
    assert agreement.rows[0].allowed == pytest.approx(0.10 + 1.2 / 1.12 - 1)
    assert agreement.rows[0].verdict is Verdict.PASS


def test_what_the_simulation_cannot_repeat_is_allowed_for() -> None:
    values = latencies()
    base, live = observed(values), observed(1.15 * values)
    agreement = compare_four(base, live, live, observed(0.9 * values))
    assert agreement.rows[0].nudged.estimate == pytest.approx(0.9)
    assert agreement.rows[0].allowed == pytest.approx(0.20)
    assert agreement.rows[0].verdict is Verdict.PASS
    assert compare_four(base, live, live, base).rows[0].verdict is Verdict.FAIL


def test_few_requests_prove_nothing() -> None:
    rng = np.random.default_rng(1)
    values = latencies(30)
    noisy = values * rng.lognormal(0, 0.4, 30)
    noisy *= np.median(values) / np.median(noisy)
    agreement = compare(observed(values), observed(noisy), observed(noisy))
    assert {row.quantile for row in agreement.rows} == {0.5}
    assert verdicts(agreement) == {Verdict.UNPROVED}
    assert compare(observed([]), observed([]), observed([])).verdict is Verdict.UNPROVED


def test_lost_requests_count() -> None:
    values, whole = latencies(200), np.ones(200, dtype=bool)
    broken = whole.copy()
    broken[:10] = False
    agreement = compare(
        observed(values), observed(values, done=broken), observed(values, done=broken)
    )
    assert agreement.completions[0].verdict is Verdict.FAIL
    assert agreement.verdict is Verdict.FAIL
    assert {row.requests for row in agreement.rows} == {190}


def test_the_warm_up_is_left_out() -> None:
    values = latencies(200)
    cold = values.copy()
    cold[:50] *= 10
    agreement = compare(observed(values), observed(cold), observed(cold), warmup_s=50)
    assert agreement.verdict is Verdict.PASS
    assert agreement.completions[0].offered == 150


def test_other_arrivals_are_refused() -> None:
    run = observed(latencies(10))
    with pytest.raises(BenchmarkError, match="same arrivals"):
        compare(run, observed(latencies(11)), run)
    with pytest.raises(BenchmarkError, match="same arrivals"):
        compare(run, observed(latencies(10), workload="batch"), run)
    moved = Observation(run.workloads, run.at_s + 0.1, run.done, run.metrics)
    with pytest.raises(BenchmarkError, match="arrival times"):
        compare(run, run, moved)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=80),
    st.floats(0.3, 3.0),
    st.floats(0.3, 3.0),
)
def test_rows_hold_together(values: list[float], first: float, second: float) -> None:
    base = np.array(values)
    agreement = compare(observed(base), observed(first * base), observed(second * base))
    for row in agreement.rows:
        assert row.ratio.low <= row.ratio.estimate <= row.ratio.high
        assert row.live_s / row.simulated_s == pytest.approx(row.ratio.estimate)
        assert row.allowed >= TOLERANCES[row.quantile]
        outside = abs(row.ratio.estimate - 1) > row.allowed
        assert (row.verdict is Verdict.FAIL) == outside


def test_the_report() -> None:
    values = latencies()
    agreement = compare(observed(values), observed(1.3 * values), observed(1.3 * values))
    console = Console(record=True, width=150)
    print_agreement(console, "hybrid", agreement)
    printed = console.export_text()
    assert "1.300 [1.300, 1.300]" in printed
    assert "hybrid: FAIL" in printed
    assert markdown("hybrid", agreement).count("| p99 |") == 3
    content = to_json(agreement)
    assert content["verdict"] == "FAIL"
    assert content["rows"][0]["ratio"]["estimate"] == pytest.approx(1.3)
