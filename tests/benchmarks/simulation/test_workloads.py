"""Generators against the figures that they are made from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_bench.workloads.arrivals import RateSchedule, arrival_times
from sage_bench.workloads.client_request import Traffic
from sage_bench.workloads.lengths import CHUNKS, LognormalLengths, length_table, length_tables
from sage_bench.workloads.sessions import BLOCK_TOKENS, Conversations, conversation_requests
from sage_bench.workloads.sources import (
    ClosedLoop,
    EmbeddingCalls,
    chat_maker,
    embedding_maker,
    open_loop,
)
from sage_bench.workloads.tenants import ZipfTenants
from sage_prefect.common.errors import SettingsError, UnknownNameError

CHAT = Traffic("chat", "m")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_rate_and_variation_are_those_asked_for(cv: float) -> None:
    times = np.fromiter(arrival_times(RateSchedule.constant(20), cv, rng(), 5000), float)
    gaps = np.diff(times)
    assert len(times) / 5000 == pytest.approx(20, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08, abs=1e-6)


def test_a_square_wave_has_its_two_rates() -> None:
    schedule = RateSchedule.square(4, 16, 30, 30)
    times = np.fromiter(arrival_times(schedule, 1.0, rng(), 6000), float)
    low = ((times % 60) < 30).sum() / 3000
    assert low == pytest.approx(4, rel=0.08)
    assert (len(times) - low * 3000) / 3000 == pytest.approx(16, rel=0.05)
    assert schedule.mean(6000) == pytest.approx(10)
    assert schedule.rate_at(95) == 16


def test_nothing_arrives_while_the_rate_is_zero() -> None:
    schedule = RateSchedule((0.0, 10.0, 20.0), (5.0, 0.0, 5.0))
    times = list(arrival_times(schedule, 1.0, rng(), 30))
    assert not [t for t in times if 10 < t <= 20]
    assert [t for t in times if t > 20]


def test_flash_diurnal_and_wandering_rates() -> None:
    assert RateSchedule.flash(2, 4, 10, 5).rate_at(12) == 8
    day = RateSchedule.diurnal(10, 0.5, 96)
    assert day.mean(96) == pytest.approx(10)
    assert max(day.rates) == pytest.approx(15, rel=0.01)
    wandering = RateSchedule.wandering(10, 0.3, 10, 100_000, rng())
    assert wandering.mean(100_000) == pytest.approx(10, rel=0.05)
    assert np.log(wandering.rates).std() == pytest.approx(0.3, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(0, 30)), min_size=1, max_size=5),
    st.floats(0, 4),
    st.integers(0, 99),
)
def test_times_rise_and_stay_inside(
    pieces: list[tuple[float, float]], cv: float, seed: int
) -> None:
    starts = [0.0]
    for width, _ in pieces[:-1]:
        starts.append(starts[-1] + width)
    rates = tuple(rate for _, rate in pieces)
    if not any(rates):
        with pytest.raises(SettingsError):
            RateSchedule(tuple(starts), rates)
        return
    times = list(arrival_times(RateSchedule(tuple(starts), rates), cv, rng(seed), 100.0))
    assert times == sorted(times)
    assert all(0 <= t <= 100 for t in times)


@pytest.mark.parametrize(
    ("starts", "rates", "period"),
    [((1.0,), (1.0,), None), ((0.0, 0.0), (1.0, 1.0), None), ((0.0,), (-1.0,), None),
     ((0.0,), (math.inf,), None), ((0.0, 5.0), (1.0, 2.0), 5.0)],
)  # fmt: skip
def test_schedules_that_make_no_sense(
    starts: tuple[float, ...], rates: tuple[float, ...], period: float | None
) -> None:
    with pytest.raises(SettingsError, match="rate schedule"):
        RateSchedule(starts, rates, period)


@pytest.mark.parametrize(
    ("table", "prompt", "output", "tolerance"),
    [("azure-conv", 1155, 211, 0.01), ("arxiv-summary", 2588, 291, 0.03),
     ("azure-code", 2048, 28, 0.3), ("mooncake-conversation", 12035, 343, 0.04)],
)  # fmt: skip
def test_lengths_have_the_published_means(
    table: str, prompt: int, output: int, tolerance: float
) -> None:
    prompts, outputs = length_table(table).draw(rng(), 100_000)
    assert prompts.mean() == pytest.approx(prompt, rel=tolerance)
    assert outputs.mean() == pytest.approx(output, rel=tolerance)
    assert length_table(table).mean() == pytest.approx((prompts.mean(), outputs.mean()), rel=0.02)
    assert prompts.min() >= 1


def test_an_unknown_length_table_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'azure-conv'"):
        length_table("azure-con")
    assert len(length_tables()) == 4


def test_tenants_are_few_and_heavy() -> None:
    tenants = ZipfTenants(200, 1.2)
    drawn = tenants.draw(rng(), 50_000)
    assert drawn.count("tenant-000") / 50_000 == pytest.approx(tenants.shares[0], rel=0.05)
    assert tenants.shares[:10].sum() > 0.5
    with pytest.raises(SettingsError, match="count 0"):
        ZipfTenants(0)


def test_conversations_grow_and_share_their_heads() -> None:
    shape = Conversations(one_turn=0.3, gap_median_s=5.0, system_tokens=512)
    requests = list(
        conversation_requests(
            CHAT, RateSchedule.constant(2), shape, length_table("azure-conv"),
            ZipfTenants(5), rng(), 400,
        )
    )  # fmt: skip
    assert [r.at for r in requests] == sorted(r.at for r in requests)
    by_session: dict[str, list[object]] = {}
    last: dict[str, tuple[int, ...]] = {}
    for request in requests:
        assert request.session is not None
        assert len(request.chain) == request.prompt // BLOCK_TOKENS
        assert request.chain[:8] == requests[0].chain[:8]
        before = last.get(request.session, ())
        assert request.chain[: len(before)] == before
        last[request.session] = request.chain_after
        by_session.setdefault(request.session, []).append(request)
    turns = [len(t) for t in by_session.values()]
    assert max(turns) > 3
    first, other = list(last.values())[:2]
    assert first[8:9] != other[8:9]


def test_embedding_calls_and_closed_loops() -> None:
    maker = embedding_maker(
        Traffic("e", "m", "embedding"), EmbeddingCalls(0.5, 64, 128), ZipfTenants(1), rng()
    )
    calls = [maker(0.0) for _ in range(400)]
    sizes = [len(call.inputs) for call in calls]
    assert set(sizes) - {1} <= set(range(64, 129))
    assert 0.4 < sizes.count(1) / 400 < 0.6
    assert all(call.prompt == sum(call.inputs) for call in calls)
    loop = ClosedLoop(maker, 3, until_s=10.0, think_s=1.0)
    assert len(loop.begin()) == 3
    following = loop.follow(4.0)
    assert following is not None
    assert following.at == 5.0
    assert loop.follow(9.5) is None
    with pytest.raises(SettingsError, match="outstanding=0"):
        ClosedLoop(maker, 0)
    with pytest.raises(SettingsError, match="query_share=2"):
        EmbeddingCalls(2.0)
    with pytest.raises(SettingsError, match="lognormal"):
        LognormalLengths(0, 1, 5)
    assert CHUNKS.draw(rng(), 1000).max() <= 512


def test_the_same_seed_gives_the_same_requests() -> None:
    def requests(seed: int) -> list[tuple[float, int, int, str]]:
        maker = chat_maker(CHAT, length_table("azure-conv"), ZipfTenants(9), rng(seed))
        source = open_loop(maker, RateSchedule.constant(5), 1.0, rng(seed + 1), until_s=50)
        found = []
        while (request := source.next()) is not None:
            found.append((request.at, request.prompt, request.output, request.tenant))
        return found

    assert requests(1) == requests(1)
    assert requests(1) != requests(2)
