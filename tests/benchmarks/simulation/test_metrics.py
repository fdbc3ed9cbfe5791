"""Figures of hand-made records."""

from __future__ import annotations

import math

import pytest

from sage_bench.simulation.fairness import fairness, service_ms
from sage_bench.simulation.metrics import good
from sage_bench.simulation.prefix_cache import PrefixCache
from sage_bench.simulation.records import Outcome, Records
from sage_bench.simulation.step_profile import StepProfile
from sage_bench.workloads.client_request import ClientRequest, Slo, Traffic
from sage_prefect.control_plane.events import Band

CHAT = Traffic("chat", "m", slo=Slo(1.0, 0.1))
PROFILE = StepProfile(0.0128, 0.001, 0.0009, 0.0)


def add(
    records: Records,
    tenant: str = "a",
    at: float = 0.0,
    *,
    traffic: Traffic = CHAT,
    outcome: Outcome = Outcome.DONE,
    queued_s: float = 0.0,
    ttft_s: float = 0.5,
    tpot_s: float = 0.05,
    e2e_s: float = 2.0,
    output: int = 100,
) -> None:
    records.add(
        ClientRequest(at, traffic, tenant, 100, output),
        outcome,
        queued_s=queued_s,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        tpot_s=tpot_s,
        max_gap_s=0.0,
        retry_after_s=math.nan,
        cached=0,
        attempts=1,
        status=200,
        engine=0,
    )


def test_only_answers_within_every_slo_are_good() -> None:
    records = Records(["e"])
    add(records)
    add(records, ttft_s=1.1)
    add(records, tpot_s=0.11)
    add(records, tpot_s=math.nan, output=1)
    add(records, outcome=Outcome.REJECTED, ttft_s=math.nan, e2e_s=math.nan)
    add(records, outcome=Outcome.UNFINISHED)
    assert good(records.columns(), CHAT).tolist() == [True, False, False, True, False, False]
    whole = Traffic("w", "m", stream=False, slo=Slo(ttft_s=1.0))
    # Without a stream the first token comes with the last.
    assert not good(records.columns(), whole)[0]


def test_service_is_engine_time() -> None:
    records = Records(["e"])
    add(records)
    add(records, outcome=Outcome.REJECTED)
    # 100 prompt tokens of 1 ms; 100 answer tokens of 12.8 ms / 128 + 0.9 ms.
    assert service_ms(records.columns(), PROFILE).tolist() == pytest.approx([200.0, 0.0])


def served(records: Records, tenant: str, each_s: float, traffic: Traffic = CHAT) -> None:
    for i in range(int(120 / each_s)):
        begin = i * each_s
        add(
            records,
            tenant,
            traffic=traffic,
            queued_s=begin,
            ttft_s=begin + each_s,
            e2e_s=begin + each_s,
        )


def test_equal_service_is_fair_and_unequal_is_not() -> None:
    equal, unequal = Records(["e"]), Records(["e"])
    for tenant in ("a", "b"):
        served(equal, tenant, 1.0)
    served(unequal, "a", 0.5)
    served(unequal, "b", 2.0)
    found = fairness(equal, PROFILE, {}, 0.0, 100.0)
    assert (found.jain, found.windows) == (pytest.approx(1.0), 10)
    assert found.max_difference_ms == pytest.approx(0.0, abs=1e-6)
    worse = fairness(unequal, PROFILE, {}, 0.0, 100.0)
    # Shares of 4 to 1: (4 + 1)^2 / (2 * (16 + 1)).
    assert worse.jain == pytest.approx(25 / 34)
    assert worse.max_difference_ms == pytest.approx(100 * (2 - 0.5) * 200, rel=0.01)
    weighted = fairness(unequal, PROFILE, {"a": 4.0}, 0.0, 100.0)
    assert weighted.jain == pytest.approx(1.0)


def test_bands_are_not_compared_and_idle_tenants_do_not_count() -> None:
    records = Records(["e"])
    served(records, "a", 0.5)
    served(records, "b", 5.0, Traffic("batch", "m", band=Band.BATCH))
    add(records, "c", 50.0, ttft_s=0.1, e2e_s=0.2)
    assert fairness(records, PROFILE, {}, 0.0, 100.0).jain is None


def test_blocks_are_pinned_by_count_and_kept_by_recent_use() -> None:
    cache = PrefixCache(64)
    cache.pin((1, 2, 3))
    cache.pin((1, 2))
    assert (cache.pinned, cache.kept) == (3, 0)
    cache.release((1, 2, 3))
    assert (cache.pinned, cache.kept) == (2, 1)
    assert cache.hits((1, 2, 3, 4)) == (3, 2)
    cache.release((1, 2))
    cache.keep((7, 8))
    cache.shrink(3)
    # The tail of what was used longest ago goes first.
    assert cache.hits((1, 2)) == (1, 0)
    assert cache.hits((7, 8)) == (2, 0)
    cache.clear()
    assert cache.kept == 0
