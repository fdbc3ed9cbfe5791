"""``router_settings`` and what ``litellm_settings`` says of routing, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sage_gateway.config_section import Section
from sage_gateway.cooldown import CooldownConfig
from sage_gateway.fallbacks import DEFAULT_MOST, FallbackRules
from sage_gateway.model_names import Alias, ModelNames
from sage_gateway.served_model import ServedModel
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.routing_strategies import ROUTING_STRATEGIES, resolve

DEFAULT_POLICY = "hybrid"


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where requests go, and where they go when that fails."""

    policy: str = DEFAULT_POLICY
    aliases: dict[str, Alias] = field(default_factory=dict)
    fallbacks: FallbackRules = field(default_factory=FallbackRules)
    cooldown: CooldownConfig | None = None


class RoutingSections:
    """The two sections of LiteLLM that speak of routing; ``router_settings`` wins.

    Args:
        router: ``router_settings``.
        litellm: ``litellm_settings``.
        warnings: what is to be said at start is added to it.
    """

    def __init__(self, router: Section, litellm: Section, warnings: list[str]) -> None:
        self._router = router
        self._litellm = litellm
        self._warnings = warnings

    def of(self, key: str, theirs: str | None = None) -> tuple[Section, str]:
        """The section that decides a key, and its name there.

        Args:
            theirs: its name in ``litellm_settings``, where it differs.
        """
        theirs = theirs or key
        if self._router.has(key) and self._litellm.has(theirs):
            self._litellm.any(theirs)
            self._warnings.append(
                f"{self._litellm.name(theirs)} gives way to {self._router.name(key)}."
            )
        if self._router.has(key) or not self._litellm.has(theirs):
            return self._router, key
        return self._litellm, theirs

    def read(self, models: Iterable[ServedModel], *, policy_given: bool) -> RouterConfig:
        """Aliases, fallbacks, cooldown and the policy.

        Args:
            models: of all engines of the file, for what is said of names that are not there.
            policy_given: another policy than the file's is in force; nothing is said of it.

        Raises:
            SettingsError: names the key, its value and what was expected.
            UnknownNameError: the routing strategy is not known.
        """
        aliases = self._aliases()
        rules = FallbackRules(
            self._rules("fallbacks"),
            self._rules("context_window_fallbacks"),
            self._rules("content_policy_fallbacks"),
            self._defaults(),
            self._router.integer("max_fallbacks", DEFAULT_MOST),
        )
        names = ModelNames(models, aliases)
        self._say_unknown(names, aliases, rules)
        return RouterConfig(self._policy(policy_given), aliases, rules, self._cooldown())

    def _policy(self, given: bool) -> str:
        wanted = self._router.text("routing_strategy")
        if wanted is None:
            return DEFAULT_POLICY
        theirs = ROUTING_STRATEGIES.get(wanted)
        if theirs is not None and wanted != "least-busy" and not given:
            self._warnings.append(
                f"router_settings.routing_strategy {wanted!r} is served by {theirs.policy!r}: "
                f"{theirs.reason}."
            )
        return resolve(wanted)

    def _aliases(self) -> dict[str, Alias]:
        section = self._router.section("model_group_alias")
        aliases: dict[str, Alias] = {}
        for name in section.names():
            value = section.any(name)
            if isinstance(value, dict):
                entry = section.section(name)
                aliases[name] = Alias(entry.required_text("model"), entry.flag("hidden"))
                entry.refuse_unread()
            else:
                aliases[name] = Alias(section.required_text(name))
            if not name or name == aliases[name].model:
                raise SettingsError(f"{section.name(name)} names itself.")
        return aliases

    def _rules(self, key: str) -> dict[str, tuple[str, ...]]:
        section, name = self.of(key)
        rules: dict[str, tuple[str, ...]] = {}
        for i, item in enumerate(section.items(name)):
            entry = Section(item, f"{section.name(name)}[{i}]")
            for model in entry.names():
                if model in rules:
                    raise SettingsError(f"{entry.name(model)} is there twice.")
                rules[model] = _model_names(entry.items(model), entry.name(model))
        return rules

    def _defaults(self) -> tuple[str, ...]:
        section, name = self.of("default_fallbacks")
        return _model_names(section.items(name), section.name(name))

    def _cooldown(self) -> CooldownConfig | None:
        fails, fails_key = self.of("allowed_fails")
        time, time_key = self.of("cooldown_time")
        is_said = fails.has(fails_key) or time.has(time_key)
        config = CooldownConfig(
            fails.integer(fails_key, CooldownConfig().allowed_fails, most=1_000_000),
            time.seconds(time_key, CooldownConfig().cooldown_s),
        )
        if self._router.flag("disable_cooldowns") or not is_said:
            return None
        return config

    def _say_unknown(
        self, names: ModelNames, aliases: dict[str, Alias], rules: FallbackRules
    ) -> None:
        for name, alias in aliases.items():
            if not names.is_known(alias.model):
                self._warnings.append(
                    f"router_settings.model_group_alias.{name} names the model {alias.model!r}, "
                    "which no entry of model_list has."
                )
        named = [
            *(model for listed in rules.general.values() for model in listed),
            *(model for listed in rules.context_window.values() for model in listed),
            *(model for listed in rules.content_policy.values() for model in listed),
            *rules.default,
        ]
        self._warnings += [
            f"fallbacks name the model {model!r}, which no entry of model_list has."
            for model in dict.fromkeys(named)
            if not names.is_known(model)
        ]


def _model_names(values: list[Any], where: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str) or not value:
            raise SettingsError(
                f"{where} holds a {type(value).__name__}; only names of models are taken.",
                hint="Give the fallback an entry of its own in model_list and name it here.",
            )
    return tuple(dict.fromkeys(values))
