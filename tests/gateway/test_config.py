"""gateway.yaml: what it means, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sage_gateway.config import load_config, parse_config
from sage_gateway.rate_limits import RateLimit
from sage_prefect.common.errors import SettingsError, UnknownNameError
from sage_prefect.control_plane.event_bounds import is_measurable
from sage_prefect.control_plane.events import Band, EngineProfile, EngineSpec
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS
from sage_prefect.control_plane.strategies import POLICIES

ENV = {"LLM_KEY": "k1", "SEARCH_KEY": "sk-search", "SAGE_MASTER_KEY": "sk-master"}

DESIGN = """
model_list:
  - model_name: smollm2-135m
    litellm_params: {model: openai/smollm2-135m, api_base: http://127.0.0.1:8001/v1, api_key: os.environ/LLM_KEY}
    model_info: {mode: chat, engine: llamacpp, device: cpu, max_concurrency: 8}
router_settings: {routing_strategy: least_outstanding, num_retries: 1, fallbacks: [{big: [small]}]}
general_settings: {master_key: os.environ/SAGE_MASTER_KEY}
sage_settings:
  bands: {interactive: {ttft_slo_ms: 1000, tpot_slo_ms: 100}, batch: {}}
  tenants: [{name: search, key: os.environ/SEARCH_KEY, weight: 2, bands: [interactive, batch], rpm: 600, tpm: 200000}]
"""  # noqa: E501


def config(text: str, env: dict[str, str] | None = None) -> Any:
    return parse_config(yaml.safe_load(text), ENV if env is None else env)


def model(**params: Any) -> dict[str, Any]:
    return {
        "model_name": params.pop("name", "m"),
        "model_info": params.pop("info", {}),
        "litellm_params": {"model": "openai/m", "api_base": "http://h:1/v1", **params},
    }


def test_the_design_page_s_example() -> None:
    read = config(DESIGN)
    (engine,) = read.engines
    assert engine.name == "127.0.0.1:8001"
    assert engine.api_key == "k1"
    assert engine.max_concurrency == 8
    assert engine.driver == "llamacpp"
    assert engine.models[0].name == "smollm2-135m"
    assert engine.models[0].upstream is None  # the same name: nothing to splice
    assert read.policy == "least_outstanding"
    assert read.master_key == "sk-master"
    assert read.scheduling.max_retries == 1
    (tenant,) = read.tenants
    assert tenant.bands == (Band.INTERACTIVE, Band.BATCH)
    said = "\n".join(read.warnings)
    assert "'small', which no entry of model_list has" in said
    assert "bands.inter" in said
    assert "rpm" not in said
    assert tenant.limit == RateLimit(600, 200_000)
    assert read.router.fallbacks.general == {"big": ("small",)}


def test_promises_and_weights_reach_the_control_plane_under_hybrid() -> None:
    read = config(DESIGN.replace("least_outstanding", "hybrid"))
    (band,) = read.bands
    assert (band.band, band.ttft_slo_s, band.tpot_slo_s) == (Band.INTERACTIVE, 1.0, 0.1)
    assert band.age_limit_s == DEFAULT_BANDS[Band.INTERACTIVE].age_limit_s
    assert read.tenants[0].weight == 2
    assert not [said for said in read.warnings if "bands" in said or "weight" in said]


def test_empty_and_missing(tmp_path: Path) -> None:
    assert parse_config(None).engines == ()
    assert parse_config({"model_list": []}).policy == "hybrid"
    with pytest.raises(SettingsError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\nb: 2\n")
    with pytest.raises(SettingsError, match=r"broken.yaml.*not YAML at line 2, column \d"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_config(broken)
    broken.write_text("- 1")
    with pytest.raises(SettingsError, match=r"broken.yaml: the file is a list"):
        load_config(broken)


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        config(DESIGN, {})
    assert "model_list[0].litellm_params.api_key" in caught.value.message
    assert "'LLM_KEY'" in caught.value.message
    assert "Export LLM_KEY" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("sage", "parts"),
    [
        ({"tenant": []}, ["sage_settings.tenant", "'tenants'"]),
        ({"queue": {"max_request": 1}}, ["sage_settings.queue.max_request", "'max_requests'"]),
        ({"queue": {"max_requests": "many"}}, ["max_requests", "a text", "whole number"]),
        ({"queue": {"max_requests": -1}}, ["max_requests", "-1"]),
        ({"queue": {"max_requests": True}}, ["max_requests", "True"]),
        ({"queue": [1]}, ["sage_settings.queue", "list", "mapping"]),
        ({"timeouts": {"connect_s": 0}}, ["connect_s", "0.001"]),
        ({"timeouts": {"connect_s": float("nan")}}, ["connect_s"]),
        ({"server": {"max_body_bytes": 10}}, ["max_body_bytes", "1024"]),
        ({"health": {"failures": 0}}, ["failures"]),
        ({"bands": {"urgent": {}}}, ["bands.urgent", "interactive"]),
        ({"bands": {"batch": {"ttft_slo": 1}}}, ["ttft_slo", "'ttft_slo_ms'"]),
        ({"tenants": [{"key": "k"}]}, ["tenants[0].name", "missing"]),
        ({"tenants": [{"name": "a", "key": "k", "rpm": 0}]}, ["tenants[0].rpm", "from 1"]),
        ({"tenants": [{"name": "a", "key": "k", "models": [1]}]}, ["tenants[0].models"]),
        ({"keys": {"fiel": "x"}}, ["sage_settings.keys.fiel", "'file'"]),
        ({"tenants": [{"name": "a", "key": "k", "bands": ["batsch"]}]}, ["batsch", "'batch'"]),
        ({"tenants": [{"name": "a", "key": "k", "wieght": 1}]}, ["wieght", "'weight'"]),
        ({"tenants": [{"name": "a", "key": "k", "weight": 0}]}, ["weight"]),
        ({"tenants": [{"name": "a", "key": "k"}, {"name": "a", "key": "l"}]}, ["'a'", "twice"]),
        ({"tenants": [{"name": "a", "key": "k"}, {"name": "b", "key": "k"}]}, ["[1].key"]),
        ({"tenants": 5}, ["tenants", "list"]),
    ],
)
def test_mistakes_in_our_section(sage: Any, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_config({"sage_settings": sage}, {})
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"litellm_params": {}}, ["model_list[0].model_name", "missing"]),
        ({"model_name": "m"}, ["litellm_params.model", "missing"]),
        (model(model="opnai/m"), ["'opnai'", "Did you mean 'openai'"]),
        (model(model="openai/"), ["no provider or no model"]),
        (model(order=-1), ["litellm_params.order"]),
        (model(weight="much"), ["litellm_params.weight"]),
        (model(model="hosted_vllm/x", api_base=None), ["api_base", "missing"]),
        (model(api_base="h:1/v1"), ["api_base", "http"]),
        (model(api_base="http://h:99999/v1"), ["api_base"]),
        (model(info={"mode": "embeding"}), ["mode", "'embedding'"]),
        (model(info={"max_concurrency": 0}), ["max_concurrency"]),
        (model(info={"max_batch_inputs": 0}), ["max_batch_inputs", "from 1 to 2048"]),
        (model(info={"max_batch_inputs": 4096}), ["max_batch_inputs"]),
        (model(info={"max_batch_tokens": "many"}), ["max_batch_tokens"]),
        (model(info={"accelerator": 3}), ["accelerator"]),
        (model(timeout="soon"), ["timeout"]),
        ("m", ["model_list[0]", "mapping"]),
    ],
)
def test_mistakes_in_the_model_list(entry: Any, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_config({"model_list": [entry]}, {})
    for part in parts:
        assert part in str(caught.value)


def test_two_models_of_one_server_share_its_window() -> None:
    read = parse_config(
        {
            "model_list": [
                model(name="a", info={"max_concurrency": 8}),
                model(name="b", model="openai/real", info={"max_concurrency": 4}),
                model(name="a", api_base="http://other:1/v1", timeout=5),
            ]
        },
        {},
    )
    first, second = read.engines
    assert first.spec().max_concurrency == 4
    assert [(m.name, m.upstream) for m in first.models] == [("a", "m"), ("b", "real")]
    assert first.max_concurrency == 4
    assert second.first_byte_s == 5.0
    same = {"id": "e"}
    with pytest.raises(SettingsError, match=r"model_list\[1\].*another api_key"):
        parse_config(
            {"model_list": [model(api_key="x", info=same), model(api_key="y", info=same)]}, {}
        )


@pytest.mark.parametrize(
    "change",
    [{"api_key": "other"}, {"model": "openai/other"}, {"weight": 2}, {"timeout": 5}],
)
def test_deployments_of_one_server_that_differ_are_engines_of_their_own(change: Any) -> None:
    read = parse_config({"model_list": [model(weight=1.5, timeout=7), model(**change)]}, {})
    if set(change) <= {"api_key", "model"}:
        assert [engine.name for engine in read.engines] == ["h:1", "h:1@2"]
        assert [engine.models[0].name for engine in read.engines] == ["m", "m"]
        return
    assert [engine.name for engine in read.engines] == ["h:1", "h:1@2"]


def test_keys_of_litellm_that_we_do_not_honour_are_reported() -> None:
    read = parse_config(
        {
            "model_list": [model(rpm=5, info={"base_model": "x"})],
            "litellm_settings": {"drop_params": True},
            "router_settings": {"routing_strategy": "simple-shuffle", "retry_after": 3},
            "general_settings": {"database_url": "x"},
        },
        {},
    )
    said = "\n".join(read.warnings)
    for key in (
        "model_list[0].litellm_params.rpm",
        "model_list[0].model_info.base_model",
        "litellm_settings.drop_params",
        "router_settings.retry_after",
        "general_settings.database_url",
        "'simple-shuffle' is served by 'random'",
    ):
        assert key in said
    assert read.policy == "random"


def test_a_misspelt_section_is_an_error() -> None:
    with pytest.raises(SettingsError, match="sage_setings"):
        parse_config({"sage_setings": {}}, {})


def test_unknown_policy() -> None:
    with pytest.raises(UnknownNameError, match="fifo"):
        parse_config({"router_settings": {"routing_strategy": "fifos"}}, {})


def test_a_secret_in_the_wrong_place_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_config({"sage_settings": {"queue": {"max_requests": "sk-secret"}}}, {})
    assert "sk-secret" not in str(caught.value)


def test_the_example_file_is_read() -> None:
    root = Path(__file__).parents[2]
    file = root / "deployments" / "gateway.yaml"
    env = {name: f"value-of-{name}" for name in ("SAGE_MASTER_KEY", "SEARCH_KEY", "INGEST_KEY")}
    read = load_config(file, env)
    assert {m.name for engine in read.engines for m in engine.models} >= {
        "smollm2-135m",
        "all-minilm-l6-v2",
    }


def test_what_is_said_of_an_engine() -> None:
    info = {
        "takes_priority": True,
        "price": 2.5,
        "kv_tokens": 120_000,
        "max_batch_tokens": 8192,
        "padded": True,
        "profile": {"c0": 0.03, "a": 6.5e-5, "b": 2.1e-4, "g": 1.6e-7},
    }
    (engine,) = parse_config({"model_list": [model(info=info)]}, {}).engines
    assert engine.takes_priority
    spec = engine.spec()
    assert (spec.price, spec.kv_tokens, spec.max_batch_tokens, spec.padded) == (
        *(2.5, 120_000, 8192, True),
    )
    assert spec.profile == EngineProfile(0.03, 6.5e-5, 2.1e-4, 1.6e-7, source="gateway.yaml")
    assert is_measurable(spec)
    (plain,) = parse_config({"model_list": [model()]}, {}).engines
    assert plain.spec().profile is None
    assert not plain.takes_priority


@pytest.mark.parametrize(
    "info",
    [
        {"price": -1},
        {"price": float("inf")},
        {"price": float("nan")},
        {"takes_priority": "yes"},
        {"kv_tokens": 0},
        {"kv_tokens": 10**30},
        {"max_batch_tokens": -5},
        {"profile": {"c0": -1}},
        {"profile": {"c": 1}},
    ],
)
def test_what_cannot_be_true_of_an_engine(info: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(info))):
        parse_config({"model_list": [model(info=info)]}, {})


def test_an_engine_of_two_entries_is_described_once() -> None:
    one = model(name="a", info={"id": "e", "price": 2.0})
    two = model(name="b", info={"id": "e", "kv_tokens": 5000})
    (engine,) = parse_config({"model_list": [one, two]}, {}).engines
    assert (engine.price, engine.kv_tokens) == (2.0, 5000)
    three = model(name="c", info={"id": "e", "price": 3.0})
    with pytest.raises(SettingsError, match=r"model_list\[2\].* price"):
        parse_config({"model_list": [one, two, three]}, {})


def test_limits_of_tenants() -> None:
    tenants = [
        {"name": "a", "key": "k1", "max_queued": 0, "max_running": 3},
        {"name": "b", "key": "k2"},
    ]
    first, second = parse_config({"sage_settings": {"tenants": tenants}}, {}).tenants
    assert (first.max_queued, first.max_running) == (0, 3)
    assert (second.max_queued, second.max_running) == (None, None)
    for wrong in ({"max_running": -1}, {"max_queued": 1.5}, {"weight": float("inf")}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            parse_config({"sage_settings": {"tenants": [{**tenants[0], **wrong}]}}, {})


# What each policy does not use, of everything that can be set.
WEIGHT, PRICE = "tenants[0].weight", "price of engine"
TTFTS = {f"bands.{band.label}.ttft_slo_ms" for band in Band}
TPOTS = {f"bands.{band.label}.tpot_slo_ms" for band in Band}
BATCH_TPOT = {"bands.batch.tpot_slo_ms"}
NOT_INTERACTIVE = {name for name in TTFTS | TPOTS if "interactive" not in name}
UNUSED: dict[str, set[str]] = {name: {WEIGHT, PRICE, *TTFTS, *TPOTS} for name in POLICIES} | {
    "hybrid": {PRICE, *BATCH_TPOT},
    "slo_aware": {PRICE, WEIGHT, *BATCH_TPOT},
    "cost": {WEIGHT, *BATCH_TPOT},
    "priority": {PRICE, WEIGHT, *TTFTS, *BATCH_TPOT},
    "fair": {PRICE, *TTFTS, *NOT_INTERACTIVE},
    "adaptive": {PRICE, WEIGHT, *NOT_INTERACTIVE},
}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_a_policy_does_not_use_is_said(policy: str) -> None:
    everything = {
        "model_list": [model(info={"price": 2.0})],
        "router_settings": {"routing_strategy": "fifo"},
        "sage_settings": {
            "bands": {band.label: {"ttft_slo_ms": 1000, "tpot_slo_ms": 100} for band in Band},
            "tenants": [{"name": "t", "key": "k", "weight": 2}],
        },
    }
    read = parse_config(everything, {}, policy)
    said = [warning for warning in read.warnings if "is not used" in warning]
    assert all(f"by policy '{policy}'" in warning for warning in said)
    every = {WEIGHT, PRICE, *TTFTS, *TPOTS}
    assert {name for name in every if any(name in line for line in said)} == UNUSED[policy]
    assert len(said) == len(UNUSED[policy])


def test_the_policies_that_use_it_are_named() -> None:
    tenants = [{"name": "t", "key": "k", "weight": 2}]
    content = {"sage_settings": {"tenants": tenants}}
    assert parse_config(content, {}).warnings == ()
    read = parse_config(content, {}, policy="least_outstanding")
    assert read.warnings == (
        "sage_settings.tenants[0].weight is not used by policy 'least_outstanding'; "
        "fair and hybrid use it.",
    )


def test_what_an_embedding_engine_takes_in_one_call() -> None:
    def spec(*entries: dict[str, Any]) -> EngineSpec:
        (engine,) = parse_config({"model_list": list(entries)}, {}).engines
        return engine.spec()

    unknown = spec(model(info={"mode": "embedding"}))
    assert (unknown.max_batch_inputs, unknown.max_batch_tokens, unknown.accelerator) == (
        32,
        None,
        None,
    )
    ours = {"mode": "embedding", "engine": "sentence-transformers"}
    assert spec(model(info=ours)).max_batch_inputs == 2048
    full = {**ours, "max_batch_inputs": 64, "max_batch_tokens": 4096, "accelerator": "h/gpu0"}
    assert spec(model(info=full)).max_batch_inputs == 64
    assert spec(model(info=full)).max_batch_tokens == 4096
    assert spec(model(info=full)).accelerator == "h/gpu0"
    # Two entries of one engine: the narrower one counts.
    both = spec(model(name="a", info=full), model(name="b", info={**full, "max_batch_inputs": 8}))
    assert (both.max_batch_inputs, both.max_batch_tokens) == (8, 4096)
    assert spec(model(name="a", info=ours), model(name="b", info=full)).accelerator == "h/gpu0"
