from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.priority_conventions import BATCH_PRIORITY, wanted_band

CRITICAL, INTERACTIVE, STANDARD, BATCH = Band


@pytest.mark.parametrize(
    ("body", "band"),
    [
        ({}, STANDARD),
        ({"priority": None}, STANDARD),
        ({"priority": 0}, STANDARD),
        ({"priority": -1}, INTERACTIVE),
        ({"priority": -(10**18)}, INTERACTIVE),
        ({"priority": 1}, BATCH),
        ({"service_tier": "priority"}, INTERACTIVE),
        ({"service_tier": "flex"}, BATCH),
        ({"service_tier": "batch"}, BATCH),
        ({"service_tier": "auto"}, STANDARD),
        ({"service_tier": ["flex"]}, STANDARD),
        # A chosen priority goes before the tier, one that nobody chose does not.
        ({"priority": -1, "service_tier": "flex"}, INTERACTIVE),
        ({"priority": 0, "service_tier": "flex"}, BATCH),
    ],
)
def test_what_the_body_says(body: dict[str, Any], band: Band) -> None:
    assert wanted_band(body, STANDARD) is band


def test_lower_numbers_are_more_urgent_and_words_the_other_way_round() -> None:
    priorities = [-5, 0, 5, BATCH_PRIORITY]
    assert [wanted_band({"priority": p}, INTERACTIVE) for p in priorities] == list(Band)
    tiers = ["priority", "default", "flex"]
    assert [wanted_band({"service_tier": t}, INTERACTIVE) for t in tiers] == [
        CRITICAL,
        INTERACTIVE,
        BATCH,
    ]


def test_headers_go_before_the_body() -> None:
    body = {"priority": 5, "service_tier": "flex"}
    assert wanted_band(body, STANDARD, objective=" Interactive ") is INTERACTIVE
    assert wanted_band(body, STANDARD, band="critical", objective="batch") is CRITICAL


def test_an_objective_that_is_no_band_counts_as_not_given() -> None:
    assert wanted_band({}, STANDARD, objective="summaries-gold") is STANDARD
    assert wanted_band({"service_tier": "flex"}, STANDARD, objective="summaries-gold") is BATCH


@pytest.mark.parametrize("value", ["1", "high", 1.5, 1.0, True, [], {}, "9" * 500])
def test_a_priority_that_is_no_integer(value: Any) -> None:
    for fields in ({}, {"band": "batch"}):
        with pytest.raises(RequestRejected, match="'priority'") as caught:
            wanted_band({"priority": value}, STANDARD, **fields)
        assert (caught.value.status, caught.value.code) == (400, "invalid_field")
        assert len(str(caught.value)) < 200


@given(st.integers(), st.integers(), st.sampled_from(Band))
def test_a_lower_priority_is_never_less_urgent(one: int, other: int, default: Band) -> None:
    low, high = sorted((one, other))
    assert wanted_band({"priority": low}, default) <= wanted_band({"priority": high}, default)
