from __future__ import annotations

from typing import Any

import pytest

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import Band, RequestInfo
from sage_prefect.control_plane.request_classifier import Entitlement, RequestClassifier


def classify(body: dict[str, Any], **fields: Any) -> RequestInfo:
    classifier = fields.pop("classifier", RequestClassifier())
    defaults: dict[str, Any] = {
        "request_id": "r",
        "kind": "chat",
        "body": {"model": "m", **body},
        "body_bytes": 400,
        "now": 10.0,
        "entitlement": Entitlement(),
    }
    return classifier.classify(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("body", "kind", "band"),
    [
        ({"stream": True}, "chat", Band.INTERACTIVE),
        ({"max_tokens": 100}, "chat", Band.INTERACTIVE),
        ({"max_completion_tokens": 4000}, "chat", Band.STANDARD),
        ({}, "chat", Band.STANDARD),
        ({"service_tier": "flex", "stream": True}, "chat", Band.BATCH),
        ({"input": "a question"}, "embedding", Band.INTERACTIVE),
        ({"input": ["a"] * 64}, "embedding", Band.BATCH),
    ],
)
def test_default_bands(body: dict[str, Any], kind: str, band: Band) -> None:
    assert classify(body, kind=kind).band is band


def test_a_big_embedding_input_is_ingestion() -> None:
    assert classify({"input": "x"}, kind="embedding", body_bytes=50_000).band is Band.BATCH


def test_a_request_lowers_its_band_and_never_raises_it_above_its_tenants() -> None:
    assert classify({"stream": True}, band="batch").band is Band.BATCH
    assert classify({}, band=" Critical ").band is Band.CRITICAL
    modest = Entitlement("t", Band.STANDARD)
    assert classify({"stream": True}, entitlement=modest).band is Band.STANDARD
    assert classify({}, entitlement=modest, band="critical").band is Band.STANDARD
    assert classify({}, entitlement=modest).tenant == "t"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "", "99999999999", "²"])
def test_wrong_deadlines(value: str) -> None:
    with pytest.raises(RequestRejected, match="x-sage-deadline-ms") as caught:
        classify({}, deadline_ms=value)
    assert caught.value.status == 400


def test_wrong_band_lists_the_known() -> None:
    with pytest.raises(RequestRejected, match="critical, interactive, standard, batch"):
        classify({}, band="urgent")


def test_deadline_is_absolute() -> None:
    assert classify({}, deadline_ms="1500").deadline == 11.5
    assert classify({}).deadline is None


@pytest.mark.parametrize("value", [True, "10", -1, 0, 1.5, None])
def test_absurd_max_tokens_count_as_not_said(value: Any) -> None:
    assert classify({"max_tokens": value}).max_tokens is None


def test_token_estimate_is_learned() -> None:
    classifier = RequestClassifier()
    assert classify({}, classifier=classifier).prompt_tokens == 100
    for _ in range(200):
        classifier.learn("m", 400, 200)
    assert 190 <= classify({}, classifier=classifier).prompt_tokens <= 200
    classifier.learn("m", 0, 5)
    classifier.learn("m", 5, 0)
    assert classify({"model": "other"}, classifier=classifier).prompt_tokens == 100


def test_promises_come_in_milliseconds() -> None:
    info = classify({}, ttft_slo_ms="800", tpot_slo_ms=" 50 ")
    assert (info.ttft_slo_s, info.tpot_slo_s) == (0.8, 0.05)
    assert (classify({}).ttft_slo_s, classify({}).tpot_slo_s) == (None, None)


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "", "soon", "9" * 11])
def test_promises_that_make_no_sense(value: str) -> None:
    with pytest.raises(RequestRejected, match="x-slo-ttft-ms"):
        classify({}, ttft_slo_ms=value)
    with pytest.raises(RequestRejected, match="x-slo-tpot-ms"):
        classify({}, tpot_slo_ms=value)
