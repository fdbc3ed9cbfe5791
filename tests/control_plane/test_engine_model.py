"""The engine's model: what it learns from a known engine, and what it does not take in."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sage_prefect.control_plane.engine_model import CLAMP, UNKNOWN, EngineModel, fleet_profile
from sage_prefect.control_plane.events import EngineProfile

PRIOR = EngineProfile(c0=0.03, a=65e-6, b=0.2e-3, g=1.6e-7, source="test")
BUDGET = 8192.0
LOADS = [(1, 500.0), (8, 8e3), (32, 20e3), (64, 100e3), (128, 120e3)]
FACTOR = st.floats(1 / 3, 3)


class Engine:
    """An engine whose iterations are affine, with a few per cent of noise."""

    def __init__(self, profile: EngineProfile, seed: int = 1, noise: float = 0.03) -> None:
        self.profile = profile
        self.rng = Random(seed)
        self.noise = noise

    def true_s(self, n: float, context: float) -> float:
        return self.profile.c0 + self.profile.b * n + self.profile.g * context

    def step(self) -> tuple[float, float, float]:
        """One clean iteration: (seconds, sequences, context)."""
        n = self.rng.randint(1, 128)
        context = n * self.rng.uniform(100, 4000)
        return self.true_s(n, context) * self._error(), n, context

    def prefill(self) -> tuple[float, float, float, float, float, float]:
        """The first token of a prompt that came alone, in the middle of some iteration."""
        prompt = self.rng.uniform(2000, 8000)
        n = self.rng.randint(1, 64)
        step = self.true_s(n, n * 1000.0)
        steps = self.rng.random() + 1.0 + prompt / BUDGET
        seconds = (self.profile.a * prompt + steps * step) * self._error()
        return seconds, 0.0, prompt, n, n * 1000.0, BUDGET

    def _error(self) -> float:
        return 1.0 + self.rng.gauss(0.0, self.noise)


def times(profile: EngineProfile, c0: float, a: float, b: float, g: float) -> EngineProfile:
    return EngineProfile(
        c0=profile.c0 * c0, a=profile.a * a, b=profile.b * b, g=profile.g * g, source="test"
    )


def knows(model: EngineModel, engine: Engine) -> bool:
    """Whether predictions are right within a seventh, or a fiftieth of the slowest iteration.

    What a hardly loaded engine takes is drowned in the errors of the heavily loaded one.
    """
    slack = max(engine.true_s(n, context) for n, context in LOADS) / 50
    return all(
        abs(model.iteration_s(n, context) - engine.true_s(n, context))
        <= max(slack, engine.true_s(n, context) / 7)
        for n, context in LOADS
    )


def state(model: EngineModel) -> tuple[object, ...]:
    return (
        model.c0, model.a, model.b, model.g, model.kt, model.samples, model.known,
        [list(row) for row in model._cov],
    )  # fmt: skip


# -- predictions ------------------------------------------------------------------------------


def test_an_iteration_is_affine_in_sequences_and_context() -> None:
    model = EngineModel(PRIOR)
    assert model.iteration_s(0, 0) == PRIOR.c0
    assert model.iteration_s(10, 0) == pytest.approx(PRIOR.c0 + 10 * PRIOR.b)
    assert model.iteration_s(0, 1e5) == pytest.approx(PRIOR.c0 + 1e5 * PRIOR.g)


def test_prefill_takes_its_share_of_the_time_of_each_token() -> None:
    model = EngineModel(PRIOR)
    alone = model.tpot_s(10, 1e4, 0.0)
    assert alone == model.iteration_s(10, 1e4)
    assert model.tpot_s(10, 1e4, 0.5 / PRIOR.a) == pytest.approx(2 * alone)
    # A burst of prompts is not for ever: the share is bounded, the prediction stays finite.
    assert model.tpot_s(10, 1e4, 1e9) == model.tpot_s(10, 1e4, 1 / PRIOR.a) < math.inf


def test_a_first_token_waits_for_what_is_ahead_and_for_a_step_per_chunk() -> None:
    model = EngineModel(PRIOR)
    step = model.iteration_s(10, 1e4)
    assert model.ttft_s(0, 0, 10, 1e4, BUDGET) == pytest.approx(step)
    one_budget = model.ttft_s(BUDGET / 4, 3 * BUDGET / 4, 10, 1e4, BUDGET)
    assert one_budget == pytest.approx(PRIOR.a * BUDGET + 2 * step)


@given(
    load=st.tuples(st.integers(0, 256), st.floats(0, 1e6), st.floats(0, 1e5)),
    more=st.tuples(st.integers(0, 256), st.floats(0, 1e6), st.floats(0, 1e5)),
)
def test_more_load_is_never_predicted_to_be_faster(
    load: tuple[int, float, float], more: tuple[int, float, float]
) -> None:
    model = EngineModel(PRIOR)
    heavier = tuple(one + other for one, other in zip(load, more, strict=True))
    assert model.tpot_s(*load) <= model.tpot_s(*heavier)
    n, context, tokens = load
    n2, context2, tokens2 = heavier
    light = model.ttft_s(tokens, 100, n, context, BUDGET)
    assert light <= model.ttft_s(tokens2, 100, n2, context2, BUDGET)
    assert light <= model.ttft_s(tokens, 200, n, context, BUDGET)


# -- learning ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(c0=FACTOR, b=FACTOR, g=FACTOR, seed=st.integers(0, 1000))
def test_it_learns_an_affine_engine_from_noisy_steps(
    c0: float, b: float, g: float, seed: int
) -> None:
    engine = Engine(times(PRIOR, c0, 1.0, b, g), seed)
    model = EngineModel(PRIOR)
    for _ in range(1500):
        model.saw_step(*engine.step())
    assert knows(model, engine)


@settings(max_examples=25)
@given(a=FACTOR, seed=st.integers(0, 1000))
def test_it_learns_the_cost_of_prefill_from_prompts_that_came_alone(a: float, seed: int) -> None:
    engine = Engine(times(PRIOR, 1.0, a, 1.0, 1.0), seed)
    model = EngineModel(PRIOR)
    for _ in range(300):
        model.saw_ttft(*engine.prefill())
    assert model.a == pytest.approx(PRIOR.a * a, rel=0.2)
    # Over all phases of the iteration under way the predicted wait is the mean one.
    seen = [engine.prefill() for _ in range(500)]
    predicted = sum(model.ttft_s(*args) for _, *args in seen)
    assert predicted == pytest.approx(sum(seconds for seconds, *_ in seen), rel=0.15)


@settings(max_examples=10)
@given(c0=st.floats(0.1, 10), b=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_an_engine_of_which_nothing_was_known_is_learned_too(
    c0: float, b: float, seed: int
) -> None:
    engine = Engine(times(UNKNOWN, c0, 1.0, b, 1.0), seed)
    model = EngineModel(None)
    assert not model.known
    for _ in range(1500):
        model.saw_step(*engine.step())
    assert model.known
    assert knows(model, engine)


@pytest.mark.parametrize("times_slower", [0.3, 40.0])
def test_an_engine_far_from_the_first_guess_is_found_soon(times_slower: float) -> None:
    engine = Engine(times(UNKNOWN, times_slower, 1.0, times_slower, times_slower))
    model = EngineModel(None)
    for _ in range(60):
        model.saw_step(*engine.step())
    for n, context in LOADS[1:]:
        assert model.iteration_s(n, context) == pytest.approx(engine.true_s(n, context), rel=0.2)


def test_it_is_trusted_after_sixteen_good_samples() -> None:
    model = EngineModel(None)
    engine = Engine(UNKNOWN)
    for _ in range(15):
        model.saw_step(*engine.step())
        model.saw_step(math.nan, 1, 100.0)
    assert not model.known
    model.saw_step(*engine.step())
    assert model.known


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_it_forgets_how_the_engine_used_to_be(factor: float) -> None:
    before, after = Engine(PRIOR), Engine(times(PRIOR, factor, 1.0, factor, factor))
    model = EngineModel(PRIOR)
    for _ in range(1500):
        model.saw_step(*before.step())
    for _ in range(600):
        model.saw_step(*after.step())
    assert knows(model, after)


def test_it_does_not_drift_along_what_the_load_never_varies() -> None:
    """Context goes with sequences for hours: what each costs cannot be told apart, and stays."""
    engine = Engine(PRIOR, noise=0.1)
    model = EngineModel(PRIOR)
    for _ in range(6000):
        n = engine.rng.randint(30, 34)
        seconds = engine.true_s(n, n * 1000.0) * engine._error()
        model.saw_step(seconds, n, n * 1000.0 + engine.rng.uniform(-50, 50))
    for n, context in [(32, 32e3), (64, 64e3), (16, 16e3)]:
        assert model.iteration_s(n, context) == pytest.approx(engine.true_s(n, context), rel=0.2)


@pytest.mark.parametrize("known", [True, False])
def test_hours_at_one_load_do_not_spoil_it(known: bool) -> None:
    """Forgetting amplifies what is never measured: rounding errors must not be among that."""
    engine, model = Engine(PRIOR, noise=0.05), EngineModel(PRIOR if known else None)
    for _ in range(16_000):
        model.saw_step(engine.true_s(32, 32e3) * engine._error(), 32, 32e3)
    cov = model._cov
    assert [list(row) for row in zip(*cov, strict=True)] == cov
    assert all(cov[i][i] * cov[j][j] >= cov[i][j] ** 2 for i in range(3) for j in range(3))
    assert model.iteration_s(32, 32e3) == pytest.approx(engine.true_s(32, 32e3), rel=0.05)
    for _ in range(400):
        model.saw_step(*engine.step())
    for n, context in LOADS:
        assert model.iteration_s(n, context) == pytest.approx(engine.true_s(n, context), rel=0.2)


def test_what_the_form_cannot_express_goes_into_the_residual() -> None:
    """Prompts behind others take three times what the model says: only ``kt`` may learn that."""
    model = EngineModel(PRIOR)
    base = EngineModel(PRIOR)
    for _ in range(300):
        model.saw_ttft(3.0 * base.ttft_s(900, 600, 8, 8e3, BUDGET), 900, 600, 8, 8e3, BUDGET)
    assert model.a == PRIOR.a
    assert model.kt == pytest.approx(3.0, rel=0.01)
    assert model.ttft_s(900, 600, 8, 8e3, BUDGET) == pytest.approx(
        3.0 * base.ttft_s(900, 600, 8, 8e3, BUDGET), rel=0.01
    )


@pytest.mark.parametrize(("factor", "end"), [(20.0, CLAMP), (0.02, 1 / CLAMP)])
def test_the_residual_has_its_clamps(factor: float, end: float) -> None:
    model, base = EngineModel(PRIOR), EngineModel(PRIOR)
    for _ in range(300):
        model.saw_ttft(factor * base.ttft_s(900, 600, 8, 8e3, BUDGET), 900, 600, 8, 8e3, BUDGET)
    assert model.kt == end


def test_a_short_prompt_says_nothing_of_prefill() -> None:
    model = EngineModel(PRIOR)
    model.saw_ttft(0.5, 0.0, 256.0, 4, 4e3, BUDGET)
    assert model.a == PRIOR.a


def test_prefill_of_an_unknown_engine_is_known_from_its_first_prompt() -> None:
    """A CPU takes milliseconds per prompt token, 25 times what is assumed."""
    model = EngineModel(None)
    for _ in range(8):
        model.saw_step(0.02, 1, 500.0)
    model.saw_ttft(0.03 + 2.5e-3 * 100, 0.0, 100.0, 0, 0.0, BUDGET)
    assert model.a == pytest.approx(2.5e-3, rel=0.1)
    assert model.kt == pytest.approx(1.0, abs=0.05)
    model.saw_ttft(0.03 + 3.5e-3 * 1000, 0.0, 1000.0, 0, 0.0, BUDGET)
    assert model.a == pytest.approx(3.0e-3, rel=0.1)
    for _ in range(100):
        model.saw_ttft(0.03 + 3.5e-3 * 1000, 0.0, 1000.0, 0, 0.0, BUDGET)
    assert model.a == pytest.approx(3.5e-3, rel=0.1)


def test_a_short_prompt_of_a_fast_engine_says_nothing_though_it_is_unknown() -> None:
    model = EngineModel(None)
    model.saw_ttft(0.05, 0.0, 200.0, 0, 0.0, BUDGET)
    assert model.a == UNKNOWN.a


# -- clamps and absurd samples ----------------------------------------------------------------

SECONDS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(1e-6, 60), st.just(0.0)
)


@given(
    st.lists(
        st.tuples(SECONDS, st.integers(0, 4096), st.floats(0, 1e7), st.floats(0, 1e6)), max_size=60
    ),
    st.booleans(),
)
def test_whatever_it_sees_it_stays_within_its_clamps(
    samples: list[tuple[float, int, float, float]], known: bool
) -> None:
    prior, wide = (PRIOR, CLAMP) if known else (UNKNOWN, 100.0)
    model = EngineModel(PRIOR if known else None)
    for seconds, n, context, prompt in samples:
        model.saw_step(seconds, n, context)
        model.saw_ttft(seconds, 0.0, prompt, n, context, BUDGET)
    for name in ("c0", "a", "b", "g"):
        value, start = getattr(model, name), getattr(prior, name)
        assert start / wide <= value <= start * wide, name
    assert 1 / CLAMP <= model.kt <= CLAMP
    assert 0 < model.ttft_s(100, 100, 4, 4e3, BUDGET) < math.inf


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e9])
def test_an_absurd_sample_changes_nothing(seconds: float) -> None:
    model = EngineModel(PRIOR)
    before = state(model)
    model.saw_step(seconds, 4, 4000.0)
    model.saw_ttft(seconds, 0.0, 1000.0, 4, 4000.0, BUDGET)
    assert state(model) == before


@pytest.mark.parametrize("ahead", [0.0, 100.0])
@pytest.mark.parametrize("seconds", [30.0, 500.0])
def test_one_stall_before_a_first_token_moves_predictions_by_little(
    ahead: float, seconds: float
) -> None:
    """A request that sat in a stalled engine for minutes is one sample, not the new normal."""
    model = EngineModel(PRIOR)
    before = model.ttft_s(0, 1000, 4, 4e3, BUDGET)
    model.saw_ttft(seconds, ahead, 1000.0, 4, 4e3, BUDGET)
    assert model.ttft_s(0, 1000, 4, 4e3, BUDGET) < 1.35 * before
    assert model.a <= 1.2 * PRIOR.a


@pytest.mark.parametrize("known", [True, False])
def test_one_stall_between_tokens_moves_predictions_by_little(known: bool) -> None:
    engine, model = Engine(PRIOR), EngineModel(PRIOR if known else None)
    for _ in range(500):
        model.saw_step(*engine.step())
    model.saw_step(30.0, 16, 16e3)
    for n, context in LOADS:
        assert model.iteration_s(n, context) == pytest.approx(engine.true_s(n, context), rel=0.25)


@pytest.mark.parametrize(
    "profile", [None, EngineProfile(), EngineProfile(s0=0.01, alpha=1e-5), EngineProfile(a=1.0)]
)
def test_a_profile_without_a_step_is_none(profile: EngineProfile | None) -> None:
    model = EngineModel(profile)
    assert not model.known
    assert (model.c0, model.a, model.b, model.g) == (UNKNOWN.c0, UNKNOWN.a, UNKNOWN.b, UNKNOWN.g)


# -- the prior of an engine without a profile -------------------------------------------------


def test_the_fleets_prior_is_the_median_of_what_is_known() -> None:
    slow = EngineModel(times(PRIOR, 9.0, 9.0, 9.0, 9.0))
    models = [EngineModel(PRIOR), slow, EngineModel(times(PRIOR, 1.2, 1.4, 1.6, 1.8))]
    fleet = fleet_profile([*models, EngineModel(None)])
    assert fleet is not None
    assert (fleet.c0, fleet.a, fleet.b, fleet.g) == (
        models[2].c0, models[2].a, models[2].b, models[2].g,
    )  # fmt: skip
    assert fleet_profile([EngineModel(None)]) is None
    assert fleet_profile([]) is None


def test_the_fleets_prior_is_taken_only_where_there_is_no_profile() -> None:
    fleet = times(PRIOR, 2.0, 2.0, 2.0, 2.0)
    assert EngineModel(PRIOR, fleet).c0 == PRIOR.c0
    for none in (None, EngineProfile(alpha=1.0)):
        model = EngineModel(none, fleet)
        assert model.known
        assert (model.c0, model.a, model.b, model.g) == (fleet.c0, fleet.a, fleet.b, fleet.g)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.12]))
@example(12, 0.12)
def test_a_constant_at_its_bound_does_not_lead_the_others_astray(seed: int, short: float) -> None:
    """Sequences and context rise and fall together, and errors of samples drive one constant to
    its bound. While it was only cut off there, the others grew, to 80 times the engine's time."""
    rng, engine, model = Random(seed), Engine(PRIOR, seed, 0.03), EngineModel(None)
    n = goal = 4
    ratio = 1000.0
    for sample in range(600):
        if sample % 50 == 0:
            goal, ratio = rng.choice((6, 10, 30, 45)), rng.uniform(700, 2000)
        n = max(1, n + (goal > n) - (goal < n) + rng.choice((-1, 0, 1)))
        ratio *= 1.002
        true_s = engine.true_s(n, n * ratio)
        if sample >= 100:
            assert model.iteration_s(n, n * ratio) == pytest.approx(true_s, rel=0.3)
        # Every fifth is short, as of streams that begin: an error with a mean.
        error = engine._error() - (short if sample % 5 == 0 else 0.0)
        model.saw_step(true_s * error, n, n * ratio)
