"""The currency: what a request is expected to take, and what it took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.engine_seconds import DEFAULT_OUTPUT, predicted_s, served_s
from sage_prefect.control_plane.events import Done, EngineProfile, RequestInfo
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

MODEL = EngineModel(EngineProfile(c0=0.03, a=1e-4, b=2e-4, g=2e-7, source="test"))
TOKENS = st.integers(0, 1 << 32)


def request(prompt: int, output: int | None = None) -> ScheduledRequest:
    info = RequestInfo("r", "m", prompt_tokens=prompt, output_estimate=output)
    return ScheduledRequest(info, 0, 0.0)


def test_prompt_and_answer_count_with_what_they_cost() -> None:
    assert predicted_s(MODEL, request(1001, 0)) > predicted_s(MODEL, request(1000, 1))
    one = predicted_s(MODEL, request(0, 1))
    assert one == pytest.approx(0.03 / 128 + 2e-4 + 2e-7 / 2)
    # A prompt is paid once for its prefill, and by each token of the answer that looks at it.
    more = predicted_s(MODEL, request(1000, 100)) - predicted_s(MODEL, request(0, 100))
    assert more == pytest.approx(1000 * 1e-4 + 100 * 1000 * 2e-7)


def test_an_answer_of_unknown_length_has_the_usual_one() -> None:
    assert predicted_s(MODEL, request(10)) == predicted_s(MODEL, request(10, DEFAULT_OUTPUT))


@given(TOKENS, st.integers(1, 1 << 32))
def test_as_predicted_is_as_served(prompt: int, output: int) -> None:
    one = request(prompt, output)
    done = Done("r", prompt_tokens=prompt, output_tokens=output)
    assert served_s(MODEL, one, done) == pytest.approx(predicted_s(MODEL, one))


def test_what_an_engine_does_not_report_is_what_was_expected_and_seen() -> None:
    one = request(1000, 50)
    one.cached, one.chunks = 400.0, 20
    full = Done("r", prompt_tokens=1000, output_tokens=20, cached_tokens=400)
    assert served_s(MODEL, one, Done("r")) == served_s(MODEL, one, full)


def test_cached_tokens_are_not_paid_and_never_more_than_the_prompt() -> None:
    one = request(1000)
    served = [
        served_s(MODEL, one, Done("r", prompt_tokens=1000, output_tokens=5, cached_tokens=cached))
        for cached in (0, 600, 1000, 5000)
    ]
    assert served[0] - served[1] == pytest.approx(600 * 1e-4)
    assert served[2] == served[3] == pytest.approx(served[0] - 1000 * 1e-4)
    one.cached = -1.0
    assert served_s(MODEL, one, Done("r", prompt_tokens=1000, output_tokens=5)) == served[0]


@given(TOKENS, TOKENS, TOKENS)
def test_nothing_is_served_for_less_than_nothing(prompt: int, output: int, cached: int) -> None:
    done = Done("r", prompt_tokens=prompt, output_tokens=output, cached_tokens=cached)
    assert served_s(MODEL, request(prompt), done) >= 0.0
