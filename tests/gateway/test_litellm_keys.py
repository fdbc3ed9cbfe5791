"""Every key of LiteLLM: honoured, or reported by name, once."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from sage_gateway.config import GatewayConfig, parse_config
from sage_gateway.litellm_keys import LiteLLMKey, keys
from sage_prefect.common.errors import MissingDependencyError, SettingsError, UnknownNameError

ENTRY = {
    "model_name": "m",
    "litellm_params": {"model": "openai/m", "api_base": "http://h:1/v1"},
}
SECTIONS = ("router_settings", "litellm_settings", "general_settings")
# What an honoured key may hold, where a number will not do.
VALUES: dict[str, Any] = {
    "model_list": [ENTRY],
    "environment_variables": {"A": "b"},
    "routing_strategy": "least-busy",
    "model_group_alias": {"other": "m"},
    "fallbacks": [{"m": ["other"]}],
    "context_window_fallbacks": [{"m": ["other"]}],
    "content_policy_fallbacks": [{"m": ["other"]}],
    "default_fallbacks": ["other"],
    "disable_cooldowns": True,
    "master_key": "sk-x",
    "model": "openai/m",
    "api_base": "http://h:1/v1",
    "api_key": "k",
    "id": "e",
    "mode": "chat",
    "model_name": "m",
    **{name: {} for name in (*SECTIONS, "litellm_params", "model_info")},
}


def holding(key: LiteLLMKey) -> dict[str, Any]:
    """A configuration with nothing but this key."""
    section, _, name = key.name.rpartition(".")
    value = VALUES.get(name, 1) if key.advice is None else {"anything": 1}
    if section.startswith("model_list[]"):
        entry: dict[str, Any] = {**ENTRY, "model_info": {}}
        place = section.partition(".")[2]
        if not place:
            entry[name] = entry.get(name) or value
        else:
            entry[place] = {**entry[place], name: value}
        return {"model_list": [entry]}
    return {name: value} if not section else {section: {name: value}}


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_a_key_is_honoured_or_reported(key: LiteLLMKey) -> None:
    said = parse_config(holding(key), {}).warnings
    place = key.name.replace("[]", "[0]")
    mine = [warning for warning in said if warning.startswith(f"{place} is not honoured")]
    assert len(mine) == (0 if key.advice is None else 1)
    if key.advice is not None:
        assert key.advice in mine[0]


def is_refused(content: Any) -> bool:
    try:
        parse_config(content, {})
    except (SettingsError, UnknownNameError):
        return True
    return False


def test_an_honoured_key_of_another_type_is_an_error() -> None:
    """So it is read: a key that nobody reads could hold anything."""
    for key in keys():
        if key.advice is not None:
            continue
        content = holding(key)
        section, _, name = key.name.rpartition(".")
        wrong: Any = [object()]
        if section.startswith("model_list[]"):
            place = section.partition(".")[2]
            target = content["model_list"][0]
            (target[place] if place else target)[name] = wrong
        else:
            (content[section] if section else content)[name] = wrong
        assert is_refused(content), f"{key.name} is not read"


def test_a_key_in_many_entries_is_reported_once() -> None:
    entries = [
        {**ENTRY, "model_info": {"base_model": "x", "id": f"e{number}"}} for number in range(5)
    ]
    (said,) = parse_config({"model_list": entries}, {}).warnings
    assert said.startswith("model_list[0].model_info.base_model is not honoured (nor in 4 more")


def test_a_misspelt_key_is_told_from_one_of_litellm() -> None:
    (said,) = parse_config({"router_settings": {"num_retrys": 1}}, {}).warnings
    assert "neither LiteLLM nor this gateway" in said
    assert "Did you mean 'num_retries'?" in said


def test_modes_without_a_route_leave_their_entry_out() -> None:
    entry = {**ENTRY, "model_info": {"mode": "image_generation"}}
    read = parse_config({"model_list": [entry, ENTRY]}, {})
    assert len(read.engines) == 1
    assert "model_list[0] is left out" in read.warnings[0]


def router(**settings: Any) -> GatewayConfig:
    return parse_config({"model_list": [ENTRY], "router_settings": settings}, {})


def test_routing() -> None:
    read = router(
        fallbacks=[{"m": ["a", "b"]}, {"*": ["c"]}],
        max_fallbacks=1,
        model_group_alias={"x": {"model": "m", "hidden": True}},
        allowed_fails=0,
    )
    assert read.router.fallbacks.general == {"m": ("a", "b"), "*": ("c",)}
    assert read.router.fallbacks.most == 1
    assert read.router.aliases["x"].hidden
    assert read.router.cooldown is not None
    assert (read.router.cooldown.allowed_fails, read.router.cooldown.cooldown_s) == (0, 5.0)
    assert router(cooldown_time=2, disable_cooldowns=True).router.cooldown is None
    assert router(default_max_parallel_requests=3).engines[0].max_concurrency == 3
    for wrong in (
        {"fallbacks": [{"m": [{"model": "a"}]}]},
        {"fallbacks": [{"m": ["a"]}, {"m": ["b"]}]},
        {"fallbacks": {"m": ["a"]}},
        {"model_group_alias": {"m": "m"}},
        {"model_group_alias": {"x": {"model": "m", "hiden": True}}},
        {"default_fallbacks": "a"},
        {"cooldown_time": -1},
    ):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            router(**wrong)


def test_litellm_settings_say_the_same_and_router_settings_win() -> None:
    both = {
        "litellm_settings": {"num_retries": 5, "request_timeout": 9, "fallbacks": [{"m": ["m"]}]},
        "router_settings": {"num_retries": 1},
    }
    read = parse_config({"model_list": [ENTRY], **both}, {})
    assert read.scheduling.max_retries == 1
    assert read.timeouts.first_byte_s == 9
    assert read.router.fallbacks.general == {"m": ("m",)}
    assert read.warnings == (
        "litellm_settings.num_retries gives way to router_settings.num_retries.",
    )


def test_windows_weights_and_orders_of_deployments() -> None:
    def of(**params: Any) -> Any:
        entry = {**ENTRY, "litellm_params": {**ENTRY["litellm_params"], **params}}  # type: ignore[dict-item]
        return parse_config({"model_list": [entry]}, {}).engines[0]

    assert of(max_parallel_requests=3).max_concurrency == 3
    assert of(weight=2, rpm=7).weight == 2
    assert of(tpm=7).weight == 7
    assert of(order=2).models[0].pool == "m (order 2)"
    said = parse_config(
        {"model_list": [{**ENTRY, "litellm_params": {**ENTRY["litellm_params"], "rpm": 7}}] * 2}, {}
    ).warnings  # type: ignore[dict-item]
    assert [warning for warning in said if "rpm is no limit" in warning] == list(said)
    assert len(said) == 1


def test_environment_variables_of_the_file_are_there_for_the_rest_of_it() -> None:
    content = {
        "environment_variables": {"BASE": "os.environ/OUTER", "N": 5},
        "general_settings": {"master_key": "os.environ/BASE"},
    }
    read = parse_config(content, {"OUTER": "sk-outer"})
    assert read.master_key == "sk-outer"
    assert read.environment == {"BASE": "sk-outer", "N": "5"}
    assert "sk-outer" not in repr(read)
    with pytest.raises(SettingsError, match=r"environment_variables\.A"):
        parse_config({"environment_variables": {"A": [1]}}, {})
    with pytest.raises(SettingsError, match=r"environment_variables.A.*'GONE'"):
        parse_config({"environment_variables": {"A": "os.environ/GONE"}}, {})


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(sorted({part for key in keys() for part in key.name.split(".")}))
TREES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(
    content=TREES
    | st.fixed_dictionaries(
        {
            "model_list": st.lists(
                st.fixed_dictionaries(
                    {"model_name": st.just("m"), "litellm_params": TREES, "model_info": TREES}
                )
            ),
            "router_settings": TREES,
            "general_settings": TREES,
        }
    )
)
def test_whatever_a_file_holds_it_is_read_or_refused(content: Any) -> None:
    """Nothing but the documented errors; and what YAML can write, it can read again."""
    try:
        read = parse_config(content, {})
    except (SettingsError, UnknownNameError, MissingDependencyError):
        return
    assert read == parse_config(yaml.safe_load(yaml.safe_dump(content, sort_keys=False)), {}) or (
        read.engines != read.engines  # a weight that is not a number equals nothing
    )
