from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.event_json import from_json, to_json
from sage_prefect.control_plane.events import Arrival, Band, RequestInfo
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


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "", "86400001", "99999999999", "²"])
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


@pytest.mark.parametrize("value", [True, "10", -1, 0, 1.5, None, 10**12])
def test_absurd_max_tokens_count_as_not_said(value: Any) -> None:
    assert classify({"max_tokens": value}).max_tokens is None


def test_token_estimate_is_learned() -> None:
    classifier = RequestClassifier()
    info = classify({}, classifier=classifier)
    assert info.prompt_tokens == 100
    for _ in range(200):
        classifier.learn(info, 200, None)
    assert 190 <= classify({}, classifier=classifier).prompt_tokens <= 200
    for absurd in (None, 0, -5, 10**30):
        classifier.learn(info, absurd, absurd)
    assert 190 <= classify({}, classifier=classifier).prompt_tokens <= 200
    assert classify({"model": "other"}, classifier=classifier).prompt_tokens == 100


def test_pictures_teach_nothing_of_text() -> None:
    classifier = RequestClassifier()
    url = "data:image/png;base64," + "A" * 1_000_000
    picture = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [picture]}]}
    info = classify(body, classifier=classifier, body_bytes=len(url) + 100)
    assert info.prompt_tokens < 1100
    for _ in range(50):
        classifier.learn(info, 300, 20)
    assert classify({}, classifier=classifier).prompt_tokens == 100


def test_output_estimate_is_learned_by_tenant_and_model() -> None:
    classifier = RequestClassifier()
    assert classify({}, classifier=classifier).output_estimate == 256
    classifier.learn(classify({}, classifier=classifier), 100, 900)
    assert classify({}, classifier=classifier).output_estimate == 900
    other = Entitlement("other")
    assert classify({}, classifier=classifier, entitlement=other).output_estimate == 256
    assert classify({"model": "n"}, classifier=classifier).output_estimate == 256


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_nobody_answers_longer_than_allowed(name: str) -> None:
    info = classify({name: 40})
    assert (info.max_tokens, info.output_estimate) == (40, 40)
    assert classify({name: 4000}).output_estimate == 256
    assert classify({"max_completion_tokens": None, "max_tokens": 7}).max_tokens == 7


def test_the_prompt_is_hashed_on_wish() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 1000}]}
    assert len(classify(body).prefix) == 3
    assert classify(body, classifier=RequestClassifier(prefixes=False)).prefix == ()


def test_embedding_calls_tell_their_inputs() -> None:
    info = classify({"input": ["a" * 30, "b" * 10, "a" * 30]}, kind="embedding", body_bytes=280)
    assert info.inputs == (30, 10, 30)
    assert info.prompt_tokens == 70
    assert info.input_keys[0] == info.input_keys[2] != info.input_keys[1]
    assert (info.output_estimate, info.prefix) == (None, ())
    assert info.merge_key == classify({"input": "c"}, kind="embedding").merge_key is not None
    assert classify({}).merge_key is None
    rerank = {"query": "q", "documents": ["a", "b"]}
    assert len(classify(rerank, kind="rerank").inputs) == 2
    assert (classify({}).inputs, classify({}).input_keys) == ((), ())


@pytest.mark.parametrize(
    "fields",
    [
        {"band": "critical"},
        {"objective": "critical"},
        {"priority": -9},
        {"service_tier": "priority"},
    ],
)
def test_no_convention_raises_above_the_entitlement(fields: dict[str, Any]) -> None:
    headers = {name: fields[name] for name in fields if name in ("band", "objective")}
    for highest in Band:
        info = classify(fields, entitlement=Entitlement("t", highest), **headers)
        assert info.band >= highest
    assert classify(fields, **headers).band < Band.STANDARD


def test_the_most_explicit_word_counts() -> None:
    body = {"priority": 500, "service_tier": "priority"}
    assert classify(body).band is Band.BATCH
    assert classify(body, objective="standard").band is Band.STANDARD
    assert classify(body, objective="standard", band="interactive").band is Band.INTERACTIVE


def test_promises_come_in_milliseconds() -> None:
    info = classify({}, ttft_slo_ms="800", tpot_slo_ms=" 50 ")
    assert (info.ttft_slo_s, info.tpot_slo_s) == (0.8, 0.05)
    assert (classify({}).ttft_slo_s, classify({}).tpot_slo_s) == (None, None)


@pytest.mark.parametrize(
    "value", ["0", "-5", "1.5", "", "soon", "nan", "inf", "86400001", "9" * 11]
)
def test_promises_that_make_no_sense(value: str) -> None:
    with pytest.raises(RequestRejected, match="x-slo-ttft-ms"):
        classify({}, ttft_slo_ms=value)
    with pytest.raises(RequestRejected, match="x-slo-tpot-ms"):
        classify({}, tpot_slo_ms=value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "messages", "prompt", "input", "documents", "query", "tools", "stream", "max_tokens",
    "max_completion_tokens", "service_tier", "priority", "cache_salt",
)  # fmt: skip
WORD = st.none() | st.text(max_size=12) | st.sampled_from(["batch", "critical", "1", "1000"])


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)),
    st.sampled_from(["chat", "completion", "embedding", "rerank"]),
    st.sampled_from(Band),
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("band", "objective", "deadline_ms", "ttft_slo_ms"), WORD)
    ),
    st.integers(0, 1 << 40),
)
def test_any_body_is_classified_or_refused(
    body: dict[str, Any], kind: str, highest: Band, headers: dict[str, Any], size: int
) -> None:
    classifier = RequestClassifier()
    try:
        info = classify(
            body,
            classifier=classifier,
            kind=kind,
            entitlement=Entitlement("t", highest),
            body_bytes=size,
            **headers,
        )
    except RequestRejected:
        return
    assert highest <= info.band <= Band.BATCH
    assert info.prompt_tokens >= 0
    assert info.output_estimate is None or info.output_estimate >= 1
    assert info.deadline is None or info.deadline > 10.0
    classifier.learn(info, size, size)
    assert from_json(to_json(Arrival(info))) == Arrival(info)


@pytest.mark.parametrize(
    ("body", "kind", "answers"),
    [
        ({}, "chat", 1),
        ({"n": 4}, "chat", 4),
        ({"n": 3, "prompt": ["a", "b"]}, "completion", 6),
        ({"prompt": [[1, 2], [3]]}, "completion", 2),
        ({"prompt": [1, 2, 3]}, "completion", 1),
        ({"n": 0}, "chat", 1),
        ({"n": -1}, "chat", 1),
        ({"n": True}, "chat", 1),
        ({"n": "4"}, "chat", 1),
        ({"n": 10**30}, "chat", 1),
        ({"n": None, "prompt": []}, "completion", 1),
    ],
)
def test_several_answers_are_as_much_longer(body: dict[str, Any], kind: str, answers: int) -> None:
    info = classify({**body, "max_tokens": 100}, kind=kind)
    assert info.output_estimate == 100 * answers
    assert (info.answers or 1) == answers
    assert info.max_tokens == 100


def test_each_of_several_answers_teaches_its_share() -> None:
    classifier = RequestClassifier()
    for _ in range(200):
        classifier.learn(classify({"n": 4}, classifier=classifier), 10, 400)
    assert classify({}, classifier=classifier).output_estimate == 100
    assert classify({"n": 2}, classifier=classifier).output_estimate == 200
