"""The order of the bands: by urgency, but lower ones have a guaranteed share."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.admission import Drain
from sage_prefect.control_plane.events import Band, BandSpec, RequestInfo
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.queues import Accounts, ModelQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.engine_choice import EngineChoice
from sage_prefect.control_plane.strategies.model_pool import ModelPool


def pool() -> ModelPool:
    queue = ModelQueue("m", {band: Accounts() for band in Band}, by_deadline=True, fair=True)
    choice = EngineChoice(HybridParameters(), PrefixIndex(), Random(0))
    return ModelPool(queue, choice, Drain(5.0, 1.0, 0.0))


def fill(made: ModelPool, band: Band, count: int, cost_s: float) -> None:
    for seq in range(count):
        info = RequestInfo(f"{band}-{seq}", "m", tenant="t", band=band)
        made.queue.bands[band].push(ScheduledRequest(info, seq, 0.0, band=band, cost_s=cost_s))


def specs(**shares: float) -> dict[Band, BandSpec]:
    return {band: BandSpec(band, min_share=shares.get(band.name, 0.0)) for band in Band}


def serve(made: ModelPool, bands: dict[Band, BandSpec], count: int) -> list[ScheduledRequest]:
    """What goes when each head may go."""
    gone = []
    for _ in range(count):
        order = made.order()
        if not order:
            break
        one = made.queue.bands[order[0]].head()
        assert one is not None
        made.queue.bands[order[0]].remove(one)
        made.served(one, bands)
        gone.append(one)
    return gone


def share_of(gone: list[ScheduledRequest], band: Band) -> float:
    return sum(r.cost_s for r in gone if r.band is band) / sum(r.cost_s for r in gone)


def test_only_bands_with_requests_are_asked_the_most_urgent_first() -> None:
    made = pool()
    assert made.order() == []
    fill(made, Band.BATCH, 1, 1.0)
    fill(made, Band.CRITICAL, 1, 1.0)
    assert made.order() == [Band.CRITICAL, Band.BATCH]
    fill(made, Band.STANDARD, 1, 1.0)
    fill(made, Band.INTERACTIVE, 1, 1.0)
    assert made.order() == list(Band)


def test_without_a_share_a_lower_band_waits() -> None:
    made = pool()
    fill(made, Band.INTERACTIVE, 500, 0.1)
    fill(made, Band.BATCH, 5, 0.1)
    gone = serve(made, specs(), 500)
    assert all(one.band is Band.INTERACTIVE for one in gone)


@pytest.mark.parametrize("cost_s", [0.01, 0.5, 1.9, 5.0, 60.0])
@pytest.mark.parametrize("band", [Band.STANDARD, Band.BATCH])
def test_a_lower_band_gets_its_share_whatever_its_requests_cost(band: Band, cost_s: float) -> None:
    made = pool()
    urgent = min(4000, int(20 * cost_s / 0.05) + 100)
    fill(made, Band.INTERACTIVE, urgent, 1.0)
    fill(made, band, min(2000, int(400 / cost_s)), cost_s)
    gone = serve(made, specs(**{band.name: 0.05}), urgent)
    # The share is of what more urgent bands get; up to one request of it is yet to be earned.
    urgent_s = sum(r.cost_s for r in gone if r.band is Band.INTERACTIVE)
    got_s = sum(r.cost_s for r in gone if r.band is band)
    assert 0.05 * urgent_s - cost_s - 0.1 <= got_s <= 0.05 * urgent_s + 0.1


def test_the_share_is_earned_only_while_something_waits_and_not_hoarded() -> None:
    made = pool()
    bands = specs(BATCH=0.5)
    fill(made, Band.INTERACTIVE, 1000, 0.1)
    serve(made, bands, 500)
    fill(made, Band.BATCH, 100, 0.1)
    assert made.order()[0] is Band.INTERACTIVE
    gone = serve(made, bands, 30)
    assert share_of(gone, Band.BATCH) <= 0.5 / 1.5 + 0.05


def test_what_was_saved_during_a_long_hold_up_is_no_burst() -> None:
    """The head of the lower band could not go for minutes; then a few seconds' worth go."""
    made = pool()
    bands = specs(BATCH=0.5)
    fill(made, Band.INTERACTIVE, 5000, 0.1)
    fill(made, Band.BATCH, 1000, 0.1)
    for _ in range(4000):
        one = made.queue.bands[Band.INTERACTIVE].head()
        assert one is not None
        made.queue.bands[Band.INTERACTIVE].remove(one)
        made.served(one, bands)
    gone = serve(made, bands, 60)
    assert sum(one.band is Band.BATCH for one in gone[:30]) < 29
    assert share_of(gone, Band.BATCH) < 0.7


def test_of_two_lower_bands_both_get_theirs() -> None:
    made = pool()
    fill(made, Band.INTERACTIVE, 8000, 0.1)
    fill(made, Band.STANDARD, 2000, 0.3)
    fill(made, Band.BATCH, 2000, 0.3)
    gone = serve(made, specs(STANDARD=0.02, BATCH=0.05), 8000)
    assert share_of(gone, Band.BATCH) == pytest.approx(0.05, rel=0.15)
    assert share_of(gone, Band.STANDARD) == pytest.approx(0.02, rel=0.15)


@given(
    st.lists(st.tuples(st.sampled_from(Band), st.sampled_from([0.0, 0.1, 3.0])), max_size=40),
    st.floats(0, 1),
)
def test_each_band_is_asked_once(work: list[tuple[Band, float]], share: float) -> None:
    made = pool()
    for band, cost_s in work:
        fill(made, band, 1, cost_s)
    for _ in work:
        order = made.order()
        assert sorted(order) == sorted({b for b in Band if made.queue.bands[b].size})
        assert sorted(order[1:]) == order[1:]
        serve(made, specs(STANDARD=share, BATCH=share), 1)
        assert all(credit >= 0.0 for credit in made._credit)
    assert made.order() == []
