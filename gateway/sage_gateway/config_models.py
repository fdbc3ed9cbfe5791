"""``model_list`` of ``gateway.yaml``: LiteLLM's deployments, read as engines."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from sage_gateway.config_section import Section
from sage_gateway.engines import MODES, EngineConfig, Mode, ServedModel, parse_base_url
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.event_bounds import MAX_TOKENS
from sage_prefect.control_plane.events import EngineProfile

# Provider prefixes of litellm_params.model whose servers speak the OpenAI protocol.
OPENAI_COMPATIBLE = frozenset(
    {
        "openai",
        "custom_openai",
        "hosted_vllm",
        "llamafile",
        "lm_studio",
        "openai_like",
        "text-completion-openai",
    }
)
_OPENAI_URL = "https://api.openai.com/v1"
_OF_ENGINE = ("takes_priority", "price", "profile", "kv_tokens", "padded", "accelerator")
_NARROWER = ("max_concurrency", "max_batch_tokens", "max_batch_inputs")
_DEFAULTS = {field.name: field.default for field in fields(EngineConfig)}


def engines_of(root: Section, warnings: list[str]) -> tuple[EngineConfig, ...]:
    """The engines of ``model_list``; what is not honoured there is added to ``warnings``.

    Raises:
        SettingsError: names the key, its value and what was expected.
    """
    engines: dict[str, EngineConfig] = {}
    for i, item in enumerate(root.items("model_list")):
        engine = _deployment(Section(item, f"model_list[{i}]"), warnings)
        before = engines.get(engine.name)
        engines[engine.name] = engine if before is None else _joined(before, engine, i)
    return tuple(engines.values())


def _deployment(entry: Section, warnings: list[str]) -> EngineConfig:
    name = entry.required_text("model_name")
    params = entry.section("litellm_params")
    provider, upstream = _split_model(params)
    base_url = params.text("api_base", _OPENAI_URL if provider == "openai" else None)
    if base_url is None:
        raise SettingsError(
            f"{params.name('api_base')} is missing.", hint="It says where the engine listens."
        )
    address = parse_base_url(base_url, params.name("api_base"))
    api_key = params.text("api_key")
    timeout = params.seconds("timeout", 0.0, least=0.001) if params.has("timeout") else None
    info = entry.section("model_info")
    mode: Mode = next(m for m in MODES if m == info.choice("mode", MODES, "chat"))
    engine = EngineConfig(
        name=info.text("id") or f"{address.host}:{address.port}{_short(address.path)}",
        base_url=base_url,
        models=(ServedModel(name, mode, None if upstream == name else upstream),),
        driver=info.text("engine", "openai") or "openai",
        device=info.text("device", "cpu") or "cpu",
        max_concurrency=info.integer("max_concurrency", 8, least=1, most=100_000),
        api_key=api_key,
        first_byte_s=timeout,
        takes_priority=info.flag("takes_priority"),
        price=info.number("price", 1.0),
        profile=_profile(info.section("profile")),
        kv_tokens=info.integer("kv_tokens", 0, least=1, most=MAX_TOKENS) or None,
        max_batch_tokens=info.integer("max_batch_tokens", 0, least=1, most=MAX_TOKENS) or None,
        padded=info.flag("padded"),
        max_batch_inputs=info.integer("max_batch_inputs", 0, least=1, most=2048) or None,
        accelerator=info.text("accelerator"),
    )
    for section in (params, info, entry):
        warnings += [f"{section.name(key)} is not honoured." for key in section.unread()]
    return engine


def _profile(section: Section) -> EngineProfile | None:
    """How long the engine's work takes: seconds, as in :class:`EngineProfile`."""
    names = ("c0", "a", "b", "g", "s0", "alpha")
    known = {name: section.number(name, 0.0, most=3600.0) for name in names}
    section.refuse_unread()
    return EngineProfile(**known, source="gateway.yaml") if section.keys() else None


def _short(path: str) -> str:
    return "" if path in ("", "/v1") else path


def _split_model(params: Section) -> tuple[str, str]:
    model = params.required_text("model")
    provider, slash, rest = model.partition("/")
    if not slash:
        return "openai", model
    if provider in OPENAI_COMPATIBLE:
        return provider, rest
    raise SettingsError(
        f"{params.name('model')}={model!r}: provider {provider!r} is not OpenAI-compatible.",
        hint="Providers that speak another protocol need the extra 'providers', whose route this "
        "version does not have yet. If the server speaks OpenAI's protocol, write "
        f"'openai/{model}'.",
    )


def _joined(before: EngineConfig, after: EngineConfig, index: int) -> EngineConfig:
    """Two entries for one server are one engine with two models: its window is one."""
    for what in ("base_url", "api_key"):
        if getattr(before, what) != getattr(after, what):
            raise SettingsError(
                f"model_list[{index}] names engine {before.name!r} again, with another {what}.",
                hint="Give each engine its own model_info.id.",
            )
    least: dict[str, Any] = {
        what: min(filter(None, (getattr(before, what), getattr(after, what))), default=None)
        for what in _NARROWER
    }
    said = {what: _said_once(before, after, index, what) for what in _OF_ENGINE}
    models = before.models + after.models
    return replace(before, models=models, **least, **said)


def _said_once(before: EngineConfig, after: EngineConfig, index: int, what: str) -> Any:
    """What one of two entries of an engine says of it."""
    unsaid = _DEFAULTS[what]
    mine, other = getattr(before, what), getattr(after, what)
    if other in (unsaid, mine):
        return mine
    if mine == unsaid:
        return other
    raise SettingsError(
        f"model_list[{index}] gives engine {before.name!r} another {what} than an earlier entry.",
        hint="Say it once.",
    )
