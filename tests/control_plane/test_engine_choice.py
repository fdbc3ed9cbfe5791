"""Which engine a request goes to: who may take it, and who is best."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.engine_load import RECENT_LATENCY_S, SHARE, EngineLoad
from sage_prefect.control_plane.events import (
    PREFIX_BLOCK_TOKENS,
    Band,
    EngineProfile,
    EngineSpec,
    EngineState,
    RequestInfo,
)
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.engine_choice import EngineChoice

PARAMETERS = HybridParameters()
PROFILE = EngineProfile(c0=0.03, a=65e-6, b=0.2e-3, g=1.6e-7, source="test")
NOW = 100.0
PREFIX = tuple(range(8))


def engine(
    name: str,
    *,
    latency: int = 0,
    batch: int = 0,
    prompt: float = 0.0,
    kv: float = 100.0,
    promise: float = math.inf,
    state: EngineState = EngineState.READY,
    leaving: bool = False,
    **spec: object,
) -> EngineLoad:
    """An engine with so many requests inside, the first of which still has ``prompt`` to do."""
    fields = {"max_concurrency": 256, "profile": PROFILE, **spec}
    entry = EngineEntry(EngineSpec(name, ("m",), **fields), state, leaving=leaving)  # type: ignore[arg-type]
    load = EngineLoad(entry, PARAMETERS.window)
    for number in range(latency + batch):
        inside = ScheduledRequest(
            RequestInfo(f"{name}-{number}", "m", stream=True),
            number,
            0.0,
            engine=name,
            band=Band.INTERACTIVE if number < latency else Band.BATCH,
            tpot_slo_s=promise if number < latency else math.inf,
        )
        load.enter(inside, prompt if number == 0 else 0.0, kv, NOW)
        if number or not prompt:
            load.first_token(inside, NOW)
        entry.running.add(inside.request_id)
    return load


def request(
    prompt: int = 1000,
    *,
    band: Band = Band.INTERACTIVE,
    ttft: float = math.inf,
    tpot: float = math.inf,
    due: float = NOW + 1e6,
    tried: frozenset[str] = frozenset(),
    prefix: tuple[int, ...] = (),
    output: int = 200,
) -> ScheduledRequest:
    info = RequestInfo(
        "r", "m", band=band, prompt_tokens=prompt, output_estimate=output, prefix=prefix
    )
    arrived = NOW if ttft == math.inf else due - ttft
    made = ScheduledRequest(info, 999, arrived, tried=tried, band=band, due=due)
    made.ttft_slo_s, made.tpot_slo_s = ttft, tpot
    return made


def choice(parameters: HybridParameters = PARAMETERS, seed: int = 0) -> EngineChoice:
    return EngineChoice(parameters, PrefixIndex(), Random(seed))


def chosen(chooser: EngineChoice, one: ScheduledRequest, *loads: EngineLoad) -> str | None:
    found = chooser.choose(one, loads, NOW)
    return None if found is None else found[0].entry.name


# -- who may take it --------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(EngineState))
def test_only_engines_that_serve(state: EngineState) -> None:
    serves = state in (EngineState.READY, EngineState.WARMING)
    assert (chosen(choice(), request(), engine("e", state=state)) == "e") == serves


def test_an_engine_that_leaves_gets_nothing() -> None:
    assert chosen(choice(), request(), engine("e", leaving=True)) is None
    assert chosen(choice(), request()) is None


def test_not_over_the_engines_limit_nor_over_its_window() -> None:
    assert chosen(choice(), request(), engine("e", latency=4, max_concurrency=4)) is None
    load = engine("e", latency=4)
    load.window.size = 4
    assert chosen(choice(), request(), load) is None
    load.window.size = 5
    assert chosen(choice(), request(), load) == "e"


def test_not_where_its_cache_would_not_fit_except_alone() -> None:
    room = 0.92 * 10_000
    load = engine("e", latency=1, kv=room - 1200, kv_tokens=10_000)
    assert chosen(choice(), request(1000, output=200), load) == "e"
    assert chosen(choice(), request(1001, output=200), load) is None
    # Nobody else is inside: the engine itself must say what it cannot do.
    assert chosen(choice(), request(50_000), engine("e", kv_tokens=10_000)) == "e"


def test_not_behind_more_prefill_than_one_iteration_takes() -> None:
    def waiting(count: int, tokens: float) -> EngineLoad:
        load = engine("e", max_batch_tokens=1000)
        for number in range(count):
            inside = ScheduledRequest(RequestInfo(f"w{number}", "m", stream=True), number, 0.0)
            load.enter(inside, tokens / count, 1.0, NOW)
        return load

    over = PARAMETERS.waiting + 1
    assert chosen(choice(), request(), waiting(over, 1100.0)) is None
    assert chosen(choice(), request(), waiting(over, 900.0)) == "e"
    assert chosen(choice(), request(), waiting(over - 1, 1100.0)) == "e"


def test_engines_that_failed_it_are_a_last_resort() -> None:
    good, bad = engine("good", latency=50), engine("bad")
    assert chosen(choice(), request(), good, bad) == "bad"
    assert chosen(choice(), request(tried=frozenset({"bad"})), good, bad) == "good"
    assert chosen(choice(), request(tried=frozenset({"bad"})), bad) == "bad"


STATES = st.sampled_from(list(EngineState))
LOAD = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8), STATES, st.booleans())


@given(
    st.lists(LOAD, max_size=5),
    st.sampled_from(Band),
    st.sampled_from([0.01, 0.04, math.inf]),
    st.sampled_from([-10.0, 0.1, 1e6]),
)
def test_whoever_is_chosen_has_room_and_is_up(
    engines: list[tuple[int, int, int, EngineState, bool]], band: Band, tpot: float, slack: float
) -> None:
    loads = []
    for number, (latency, batch, room, state, preferred) in enumerate(engines):
        load = engine(f"e{number}", latency=latency, batch=batch, state=state, max_concurrency=room)
        load.batch_preferred = preferred
        loads.append(load)
    one = request(band=band, tpot=tpot, ttft=1.0, due=NOW + slack)
    found = choice().choose(one, loads, NOW)
    if found is not None:
        load, uncached = found
        assert load.entry.room > 0
        assert load.entry.in_flight < load.window.size
        assert uncached == 1000
    elif band is not Band.BATCH and slack < 0:
        assert not any(load.entry.room and load.running < load.window.size for load in loads)


# -- the best one for latency work ------------------------------------------------------------


def test_latency_work_is_spread() -> None:
    loads = [engine("a", latency=30), engine("b", latency=10), engine("c", latency=20)]
    assert chosen(choice(), request(), *loads) == "b"


def test_a_prompt_on_its_way_counts_more_than_requests_that_decode() -> None:
    assert chosen(choice(), request(), engine("a", latency=1, prompt=6000.0),
                  engine("b", latency=20)) == "b"  # fmt: skip


def test_the_faster_engine_is_preferred() -> None:
    slow = replace(PROFILE, c0=2 * PROFILE.c0, a=2 * PROFILE.a, b=2 * PROFILE.b)
    loads = [engine("slow", latency=8, profile=slow), engine("fast", latency=12)]
    assert chosen(choice(), request(), *loads) == "fast"


def test_a_cached_beginning_is_worth_its_prefill_and_no_more() -> None:
    chooser = choice()
    holder, other = engine("holder", latency=5), engine("other", latency=5)
    for load in (holder, other):
        chooser.index.set_capacity(load.entry.name, None)
    chooser.index.record("holder", PREFIX)
    one = request(1000, prefix=PREFIX)
    assert chooser.choose(one, [holder, other], NOW) == (holder, 1000 - 8 * PREFIX_BLOCK_TOKENS)
    # Twice the saving waits there already: the other one computes it anew.
    busy = engine("holder", latency=5, prompt=2 * 8.0 * PREFIX_BLOCK_TOKENS)
    assert chooser.choose(one, [busy, other], NOW) == (other, 1000)


def test_a_prompt_that_is_cached_wholly_still_takes_a_token() -> None:
    chooser = choice()
    chooser.index.set_capacity("e", None)
    chooser.index.record("e", PREFIX)
    load = engine("e")
    assert chooser.choose(request(100, prefix=PREFIX), [load], NOW) == (load, 1.0)


def test_without_the_prefix_part_it_is_not_looked_for() -> None:
    chooser = choice(replace(PARAMETERS, prefix=False))
    chooser.index.set_capacity("e", None)
    chooser.index.record("e", PREFIX)
    load = engine("e")
    assert chooser.choose(request(1000, prefix=PREFIX), [load], NOW) == (load, 1000)


def test_the_harm_to_those_inside_counts() -> None:
    """The same load: a prompt that delays batch work delays nobody who was promised anything."""
    chats, files = engine("chats", latency=20), engine("files", batch=20)
    assert chosen(choice(), request(4000), chats, files) == "files"
    careless = choice(replace(PARAMETERS, harm=0.0))
    picked = {chosen(careless, request(4000), chats, files) for _ in range(40)}
    assert picked == {"chats", "files"}


def test_the_score_is_predicted_time_to_first_token_and_who_is_inside() -> None:
    chooser = choice()
    load = engine("e", latency=7, batch=3, prompt=500.0)
    chooser.choose(request(1000), [load], NOW)
    [(scored, score, uncached)] = chooser.looked_at
    assert (scored, uncached) == (load, 1000)
    assert score == pytest.approx(load.ttft(1000) * (1 + PARAMETERS.harm * 7))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5000)), min_size=1, max_size=5),
    st.integers(1, 4000),
    st.integers(0, 5),
)
def test_while_no_model_is_known_it_is_pending_prefill_times_requests(
    engines: list[tuple[int, int]], prompt: int, seed: int
) -> None:
    """LMetric's product, arXiv 2603.15202."""
    loads, products = [], {}
    for number, (inside, ahead) in enumerate(engines):
        name = f"e{number}"
        loads.append(engine(name, latency=inside, prompt=float(ahead), profile=None))
        pending = ahead if inside else 0
        products[name] = (pending + prompt + 1) * (inside + 1)
    picked = chosen(choice(seed=seed), request(prompt), *loads)
    assert picked is not None
    assert products[picked] <= min(products.values()) * (1 + PARAMETERS.near) + 1e-6


def test_an_engine_of_which_nothing_is_known_is_not_left_out_beside_known_ones() -> None:
    """Nothing would ever be learned of it, and the known ones would get everything."""
    known, unknown = engine("known", latency=1), engine("unknown", profile=None)
    assert chosen(choice(), request(), known, unknown) == "unknown"
    busy_one = engine("unknown", profile=None, latency=2)
    assert chosen(choice(), request(), known, busy_one) == "known"


def test_the_cheapest_that_keeps_the_promise_if_price_decides() -> None:
    chooser = choice(replace(PARAMETERS, price=True))
    cheap, dear = engine("cheap", latency=100, price=1.0), engine("dear", price=3.0)
    assert chosen(chooser, request(tpot=1.0), cheap, dear) == "cheap"
    assert chosen(chooser, request(tpot=0.04), cheap, dear) == "dear"


def test_near_ties_are_broken_by_chance_and_others_are_not() -> None:
    """Several gateways that see the same must not all run to the same engine."""
    chooser = choice()
    near = [engine("a", latency=10), engine("b", latency=10), engine("c", latency=10)]
    counts = Counter(chosen(chooser, request(), *near, engine("d", latency=40)) for _ in range(600))
    assert set(counts) == {"a", "b", "c"}
    assert min(counts.values()) > 140


def test_equal_seeds_choose_alike() -> None:
    loads = [engine(name, latency=10) for name in "abcdef"]
    first, second = choice(seed=7), choice(seed=7)
    assert [chosen(first, request(), *loads) for _ in range(50)] == [
        chosen(second, request(), *loads) for _ in range(50)
    ]


# -- promises ---------------------------------------------------------------------------------


def inside_for(tpot: float) -> int:
    """Requests of 100 tokens up to which one of 1200 more keeps ``tpot``."""
    count = 0
    while engine("e", latency=count + 1).tpot_with(NOW, 1000.0, 1200.0) <= tpot:
        count += 1
    return count


def test_a_latency_request_waits_where_its_promise_would_break() -> None:
    fits = inside_for(0.06)
    assert chosen(choice(), request(tpot=0.06), engine("e", latency=fits)) == "e"
    assert chosen(choice(), request(tpot=0.06), engine("e", latency=fits + 1)) is None
    free = choice(replace(PARAMETERS, hold=False))
    assert chosen(free, request(tpot=0.06), engine("e", latency=fits + 1)) == "e"


def test_nor_does_it_break_the_promise_of_those_inside() -> None:
    fits = inside_for(0.06)
    strict = engine("e", latency=fits + 1, promise=0.06)
    assert chosen(choice(), request(tpot=1.0), strict) is None
    assert chosen(choice(), request(tpot=1.0), engine("e", latency=fits + 1, promise=0.2)) == "e"


def test_it_goes_where_the_promise_holds_though_another_would_be_faster_to_begin() -> None:
    pace = engine("slow", latency=1, profile=replace(PROFILE, c0=0.09, a=0.0))
    loaded = engine("loaded", latency=20, prompt=3000.0)
    assert pace.ttft(1000) < loaded.ttft(1000)
    assert chosen(choice(), request(tpot=0.08), pace, loaded) == "loaded"


def test_an_empty_engine_is_as_good_as_it_gets() -> None:
    assert chosen(choice(), request(tpot=1e-6), engine("e")) == "e"


def test_who_is_nearly_too_late_takes_the_least_bad_engine() -> None:
    fits = inside_for(0.06)
    worse, bad = engine("worse", latency=fits + 20), engine("bad", latency=fits + 5)
    share = PARAMETERS.last_resort
    calm = request(tpot=0.06, ttft=1.0, due=NOW + 1.01 * share)
    pressed = request(tpot=0.06, ttft=1.0, due=NOW + 0.99 * share)
    assert chosen(choice(), calm, worse, bad) is None
    assert chosen(choice(), pressed, worse, bad) == "bad"


def test_only_who_is_too_late_already_may_break_the_promise_by_far() -> None:
    far = inside_for(PARAMETERS.bend * 0.06) + 1
    pressed = request(tpot=0.06, ttft=1.0, due=NOW + 0.01)
    late = request(tpot=0.06, ttft=1.0, due=NOW)
    assert chosen(choice(), pressed, engine("e", latency=far)) is None
    assert chosen(choice(), late, engine("e", latency=far)) == "e"


def test_it_goes_to_a_batch_preferred_engine_before_its_first_token_is_late() -> None:
    behind, preferred = engine("behind", latency=1, prompt=12_000.0), engine("free")
    preferred.batch_preferred = True
    soon = behind.ttft(1000.0)
    assert chosen(choice(), request(ttft=1.1 * soon), behind, preferred) == "behind"
    assert chosen(choice(), request(ttft=0.9 * soon), behind, preferred) == "free"


def test_latency_work_keeps_off_batch_preferred_engines_while_others_do() -> None:
    left, mine = engine("left", batch=1), engine("mine", latency=30)
    left.batch_preferred = True
    assert chosen(choice(), request(tpot=0.08), left, mine) == "mine"
    crowded = engine("mine", latency=inside_for(0.08) + 1)
    assert chosen(choice(), request(tpot=0.08), left, crowded) == "left"
    assert chosen(choice(), request(tpot=0.08), left) == "left"


# -- batch work -------------------------------------------------------------------------------


def busy(chooser: EngineChoice, tpot: float = 0.1, ttft: float = math.inf) -> EngineChoice:
    """Latency requests with these promises have come lately."""
    chooser.saw_latency(request(tpot=tpot, ttft=ttft), 512.0, NOW - 1.0)
    return chooser


def batch(prompt: int = 1000) -> ScheduledRequest:
    return request(prompt, band=Band.BATCH, output=200)


def test_batch_work_is_packed_into_the_fullest_that_takes_it() -> None:
    loads = [engine("a", batch=3), engine("b", batch=9), engine("c", batch=6)]
    assert chosen(choice(), batch(), *loads) == "b"
    loads[1].window.size = 9
    assert chosen(choice(), batch(), *loads) == "c"


def test_batch_preferred_engines_come_first() -> None:
    loads = [engine("a", batch=3), engine("b", batch=60)]
    loads[0].batch_preferred = True
    assert chosen(choice(), batch(), *loads) == "a"


def test_without_latency_work_lately_batch_work_is_free() -> None:
    chooser = choice()
    load = engine("e", batch=100)
    assert chosen(chooser, batch(), load) == "e"
    chooser.saw_latency(request(tpot=0.031), 100.0, NOW - RECENT_LATENCY_S - 0.1)
    assert chosen(chooser, batch(), load) == "e"
    chooser.saw_latency(request(tpot=0.031), 100.0, NOW - RECENT_LATENCY_S + 0.1)
    assert chosen(chooser, batch(), load) is None


def test_the_gate_holds_where_time_per_token_would_leave_its_share() -> None:
    def gated(inside: int, gate: float = PARAMETERS.window.gate, **fields: float) -> str | None:
        load = engine("e", latency=1 + inside, **fields)
        load.window.gate = gate
        return chosen(busy(choice(), tpot=0.08), batch(), load)

    limit = 0
    while engine("e", latency=1 + limit + 1).tpot_with(NOW, 1000.0, 1200.0) <= 0.85 * 0.08:
        limit += 1
    assert gated(limit, 0.85) == "e"
    assert gated(limit + 1, 0.85) is None
    assert gated(limit + 1, 0.95) == "e"
    # A tighter promise of somebody inside counts in place of the model's.
    assert gated(limit, 0.85, promise=0.07) is None


def test_the_gate_is_open_where_it_is_switched_off() -> None:
    chooser = busy(choice(replace(PARAMETERS, gate=False)), tpot=0.031)
    assert chosen(chooser, batch(), engine("e", latency=50)) == "e"


def test_the_next_latency_request_must_still_begin_in_time() -> None:
    load = engine("e", latency=1, prompt=3000.0)
    wait = load.ttft(1000.0 + 512.0)
    loose, tight = (wait / PARAMETERS.ttft_gate * share for share in (1.01, 0.99))
    assert chosen(busy(choice(), ttft=loose), batch(), load) == "e"
    assert chosen(busy(choice(), ttft=tight), batch(), load) is None


def test_batch_work_has_its_own_window_beside_latency_work() -> None:
    load = engine("e", latency=1, batch=3)
    load.window.batch = 3
    assert chosen(busy(choice(), tpot=10.0), batch(), load) is None
    load.window.batch = 4
    assert chosen(busy(choice(), tpot=10.0), batch(), load) == "e"


def test_an_engine_of_which_nothing_is_known_gets_one_while_it_is_empty() -> None:
    assert chosen(busy(choice(), tpot=10.0), batch(), engine("e", profile=None)) == "e"
    assert chosen(busy(choice(), tpot=10.0), batch(), engine("e", latency=1, profile=None)) is None
    assert chosen(busy(choice(), tpot=10.0), batch(), engine("e", batch=1, profile=None)) is None
    load = engine("e", batch=1, profile=None)
    load.batch_preferred = True
    assert chosen(busy(choice(), tpot=10.0), batch(), load) == "e"


# -- tenants over their share -----------------------------------------------------------------


def room(*loads: EngineLoad, prompt: int = 100, over: float = 1.0) -> str | None:
    chooser = busy(choice(), tpot=0.1)
    chooser.usual_prompt = 1000.0
    chooser.ttft_promise_s = 1.0
    one = request(prompt, tpot=0.1, ttft=1.0, due=NOW + 1.0)
    found = chooser.choose(one, loads, NOW, over=over)
    return None if found is None else found[0].entry.name


def test_who_is_over_its_share_leaves_time_per_token_to_the_others() -> None:
    full = engine("full", latency=200, promise=0.1)
    share = full.tpot_with(NOW, 100, 300) / 0.1
    assert PARAMETERS.over_tpot < share < 1.0
    assert room(full, over=0.0) == "full"
    assert room(full) is None
    assert room(engine("idle")) == "idle"


def test_who_is_little_over_its_share_leaves_little_room() -> None:
    full = engine("full", latency=200, promise=0.1)
    share = full.tpot_with(NOW, 100, 300) / 0.1
    just = (1.0 - share) / (1.0 - PARAMETERS.over_tpot)
    assert 0.0 < just < 1.0
    assert room(full, over=0.95 * just) == "full"
    assert room(full, over=1.05 * just) is None


def test_who_is_over_its_share_leaves_prefill_to_the_others() -> None:
    """A long prompt goes where it alone is in the way; no second one beside it."""
    long = 9000
    engines = [engine(name, latency=1, promise=0.1) for name in "abcd"]
    assert room(*engines, prompt=long) is not None
    waiting = engine("w", latency=1, prompt=float(long), promise=0.1)
    assert room(*engines[:3], waiting, prompt=long) is None
    assert room(*engines[:3], waiting, prompt=100) is not None


def test_batch_work_inside_gives_way_before_who_is_over_its_share() -> None:
    assert room(engine("mixed", latency=150, batch=50, promise=0.1)) == "mixed"


# -- accelerators that are lent to embedding calls --------------------------------------------


def test_lent_accelerators_are_left_alone_while_others_will_do() -> None:
    lent = {"gpu0"}
    chooser = EngineChoice(PARAMETERS, PrefixIndex(), Random(0), lent)
    away, home = engine("away", accelerator="gpu0"), engine("home", latency=50, accelerator="gpu1")
    assert chosen(chooser, request(), away, home) == "home"
    assert chosen(chooser, request(), away) == "away"
    lent.clear()
    assert chosen(chooser, request(), away, home) == "away"


def test_a_busy_neighbour_makes_an_engine_slower_than_its_model() -> None:
    load = engine("llm", latency=10, accelerator="gpu0")
    embedding = EngineEntry(EngineSpec("embed", ("e",), accelerator="gpu0"))
    load.neighbours = (embedding,)
    alone = load.tpot_with(NOW, 0.0, 0.0)
    embedding.batches.add(1)
    load.share(NOW)
    for step in range(1, 100):
        load.share(NOW + step / 10)
    assert load.tpot_with(NOW, 0.0, 0.0) == pytest.approx(alone / (1 - SHARE), rel=0.01)
    embedding.batches.clear()
    for step in range(100, 200):
        load.share(NOW + step / 10)
    assert load.tpot_with(NOW, 0.0, 0.0) == pytest.approx(alone, rel=0.01)


def test_half_the_time_a_busy_neighbour_costs_a_third() -> None:
    """What it takes counts by time: while it is busy fewer tokens are made."""
    load = engine("llm", latency=10, accelerator="gpu0")
    embedding = EngineEntry(EngineSpec("embed", ("e",), accelerator="gpu0"))
    load.neighbours = (embedding,)
    alone = load.tpot_with(NOW, 0.0, 0.0)
    load.share(NOW)
    for step in range(1, 4000):
        embedding.batches = {1} if step % 2 else set()
        load.share(NOW + step / 100)
    assert load.tpot_with(NOW, 0.0, 0.0) == pytest.approx(alone / (1 - SHARE / 2), rel=0.01)


def test_what_a_neighbour_will_take_counts_more_than_what_it_takes_just_now() -> None:
    load = engine("llm", latency=10, accelerator="gpu0")
    load.neighbours = (EngineEntry(EngineSpec("embed", ("e",), accelerator="gpu0")),)
    alone = load.tpot_with(NOW, 0.0, 0.0)
    load.shares = {"gpu0": 0.2}
    assert load.tpot_with(NOW, 0.0, 0.0) == pytest.approx(alone / 0.8)
    load.shares = {"gpu0": 0.9}  # beside LLM requests it gets half at most
    assert load.tpot_with(NOW, 0.0, 0.0) == pytest.approx(alone / (1 - SHARE))


def test_a_batch_preferred_engine_with_latency_work_inside_is_gated_too() -> None:
    load = engine("e", batch=100)
    load.batch_preferred = True
    assert chosen(busy(choice(), tpot=0.031), batch(), load) == "e"
    load = engine("e", latency=1, batch=99)
    load.batch_preferred = True
    assert chosen(busy(choice(), tpot=0.031), batch(), load) is None


def test_without_a_promise_batch_work_may_double_the_time_per_token() -> None:
    slow = engine("e", latency=1, profile=replace(PROFILE, c0=0.5))
    chooser = choice()
    assert chooser.tpot_promise_s(slow) == pytest.approx(2 * slow.model.iteration_s(1, 1000.0))
    # On a fast engine twice very little would leave nothing to batch work.
    assert chooser.tpot_promise_s(engine("f")) >= 0.1
    busy(chooser, tpot=0.07)
    assert chooser.tpot_promise_s(slow) == 0.07


def test_the_usual_prompt_follows_what_comes() -> None:
    chooser = choice()
    for _ in range(200):
        chooser.saw_latency(request(), 3000.0, NOW)
    assert chooser.usual_prompt == pytest.approx(3000.0, rel=0.01)
