"""Names of models: aliases, wildcards, orders."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from sage_gateway.model_access import ModelAccess
from sage_gateway.model_names import Alias, ModelNames
from sage_gateway.served_model import ServedModel

TEXT = st.text(st.sampled_from("ab/-"), min_size=1, max_size=6)


def pools(names: ModelNames, name: str) -> tuple[str, ...] | None:
    target = names.target(name, "chat")
    return None if target is None else target.pools


def test_plain_names_before_wildcards_and_narrow_wildcards_before_wide_ones() -> None:
    served = [ServedModel(name) for name in ("*", "openai/*", "openai/gpt-*", "openai/gpt-4")]
    names = ModelNames(served, {})
    assert pools(names, "openai/gpt-4") == ("openai/gpt-4",)
    assert pools(names, "openai/gpt-5") == ("openai/gpt-*",)
    assert pools(names, "openai/o1") == ("openai/*",)
    assert pools(names, "claude") == ("*",)
    assert pools(ModelNames(served[1:], {}), "claude") is None


def test_embedding_and_chat_models_do_not_mix() -> None:
    names = ModelNames([ServedModel("m"), ServedModel("e/*", "embedding")], {})
    assert names.target("m", "embedding") is None
    assert names.target("e/x", "chat") is None
    assert names.target("e/x", "embedding") is not None
    assert names.modes("e/x") == {"embedding"}
    assert names.modes("nothing") == set()


def test_aliases_stand_above_names_and_are_not_followed_twice() -> None:
    aliases = {"gpt-4": Alias("small"), "m": Alias("gpt-4"), "secret": Alias("small", hidden=True)}
    names = ModelNames([ServedModel("small"), ServedModel("gpt-4")], aliases)
    assert pools(names, "gpt-4") == ("small",)
    assert pools(names, "m") == ("gpt-4",)
    assert pools(names, "secret") == ("small",)
    assert names.listed() == ["gpt-4", "m", "small"]
    assert ModelNames([], aliases).listed() == []


def test_orders_are_pools_of_their_own_lowest_first() -> None:
    served = [ServedModel("m", order=3), ServedModel("m"), ServedModel("m", order=2)]
    assert pools(ModelNames(served, {}), "m") == ("m", "m (order 2)", "m (order 3)")
    assert pools(ModelNames(served[:1], {}), "m") == ("m (order 3)",)


def test_what_engines_are_sent() -> None:
    assert ServedModel("m").sent_as("m", "m") is None
    assert ServedModel("m", upstream="real").sent_as("m", "m") == "real"
    assert ServedModel("m").sent_as("m", "alias") == "m"
    assert ServedModel("openai/*", upstream="*").sent_as("openai/gpt-4", "openai/gpt-4") == "gpt-4"
    assert ServedModel("*").sent_as("gpt-4", "gpt-4") is None
    assert ServedModel("*", upstream="x/*").sent_as("gpt-4", "gpt-4") == "x/gpt-4"
    assert ServedModel("any/*", upstream="one").sent_as("any/thing", "any/thing") == "one"


@given(before=TEXT, after=TEXT, middle=TEXT)
def test_a_wildcard_catches_what_it_stands_for(before: str, after: str, middle: str) -> None:
    model = ServedModel(f"{before}*{after}", upstream="<*>")
    name = f"{before}{middle}{after}"
    target = ModelNames([model], {}).target(name, "chat")
    assert target is not None
    assert target.is_pattern
    assert model.sent_as(target.name, name) == f"<{middle}>"


@given(patterns=st.lists(st.text(st.sampled_from("ab*"), min_size=1, max_size=4)), name=TEXT)
def test_access_allows_nothing_beyond_its_patterns(patterns: list[str], name: str) -> None:
    single = [pattern for pattern in patterns if pattern.count("*") <= 1]
    access = ModelAccess(single)

    def fits(pattern: str) -> bool:
        if "*" not in pattern:
            return pattern == name
        before, after = pattern.split("*")
        return any(
            name == before + name[len(before) : len(name) - cut] + after
            for cut in [len(after)]
            if len(before) + cut <= len(name)
        )

    assert access.allows(name) == (not single or any(fits(pattern) for pattern in single))
    within = ModelAccess(["a*"])
    assert ModelAccess(single, within=within).allows(name) == (
        access.allows(name) and name.startswith("a")
    )
