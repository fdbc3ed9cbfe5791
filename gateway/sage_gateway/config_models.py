"""``model_list`` of ``gateway.yaml``: LiteLLM's deployments, read as engines."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from sage_gateway.config_section import Section
from sage_gateway.dialects.native_routes import ROUTES
from sage_gateway.engines import MODES, EngineConfig, Mode, ProviderTarget, parse_base_url
from sage_gateway.litellm_keys import IgnoredKeys
from sage_gateway.provider_names import OPENAI_COMPATIBLE, OPENAI_URL, THROUGH_LITELLM
from sage_gateway.served_model import ServedModel
from sage_prefect.common.errors import MissingDependencyError, SettingsError, near_name
from sage_prefect.control_plane.event_bounds import MAX_TOKENS
from sage_prefect.control_plane.events import EngineProfile

LITELLM_DRIVER = "litellm"
DEFAULT_WINDOW = 8
# LiteLLM's modes whose routes are not there: such an entry is left out, the rest of a file works.
_OTHER_MODES = frozenset(
    {
        *("audio_speech", "audio_transcription", "batch", "image_edit", "image_generation"),
        *("moderation", "ocr", "realtime", "responses", "search", "video_generation"),
    }
)
_OF_ENGINE = (
    *("takes_priority", "price", "profile", "kv_tokens", "padded", "accelerator", "weight"),
    *("first_byte_s", "routes"),
)
_NARROWER = ("max_concurrency", "max_batch_tokens", "max_batch_inputs")
_DEFAULTS = {field.name: field.default for field in fields(EngineConfig)}


class ModelList:
    """Reads the entries one after the other.

    Args:
        window: of an engine whose entry does not say it.
        warnings: what is to be said at start is added to it.
        ignored: keys that nobody reads are added to it.
    """

    def __init__(self, window: int, warnings: list[str], ignored: IgnoredKeys) -> None:
        self._window = window
        self._warnings = warnings
        self._ignored = ignored
        self._engines: dict[str, EngineConfig] = {}
        self._said: set[str] = set()

    def read(self, root: Section) -> tuple[EngineConfig, ...]:
        """The engines of ``model_list``.

        Raises:
            SettingsError: names the key, its value and what was expected.
            MissingDependencyError: a provider needs the litellm library.
        """
        for i, item in enumerate(root.items("model_list")):
            entry = Section(item, f"model_list[{i}]")
            engine, is_named = self._deployment(entry)
            if engine is not None:
                self._add(engine, i, is_named)
        return tuple(self._engines.values())

    def _add(self, engine: EngineConfig, index: int, is_named: bool) -> None:
        for name in (engine.name,) if is_named else _names(engine.name):
            before = self._engines.get(name)
            if before is None:
                self._engines[name] = replace(engine, name=name)
                return
            difference = _difference(before, engine)
            if difference is None:
                self._engines[name] = _joined(before, engine)
                return
            if is_named:
                raise SettingsError(
                    f"model_list[{index}] names engine {name!r} again, with another {difference}.",
                    hint="Say it once, or give each engine its own model_info.id.",
                )

    def _deployment(self, entry: Section) -> tuple[EngineConfig | None, bool]:
        """The engine of an entry, if it is served here, and whether the file names it."""
        name = entry.required_text("model_name")
        params = entry.section("litellm_params")
        info = entry.section("model_info")
        mode = _mode(info)
        if mode is None:
            self._warnings.append(
                f"{entry.path} is left out: there is no route for {info.name('mode')}="
                f"{info.text('mode')!r}."
            )
            return None, False
        provider, upstream = _split_model(params)
        order = params.integer("order", 1)
        wants_window = params.integer("max_parallel_requests", self._window, least=1, most=100_000)
        weight = _weight(params)
        for key in ("rpm", "tpm"):
            if params.has(key):
                self._once(
                    f"{params.name(key)} is no limit here, only a weight for policy 'random' where "
                    "no weight is given; max_parallel_requests and tenants have limits."
                )
        if provider in OPENAI_COMPATIBLE:
            engine = self._openai(params, provider)
        else:
            engine = self._through_litellm(params, provider)
            upstream = f"{provider}/{upstream}"
        chosen = info.text("id")
        engine = replace(
            engine,
            name=chosen or engine.name,
            models=(ServedModel(name, mode, None if upstream == name else upstream, order),),
            driver=info.text("engine", engine.driver) or engine.driver,
            device=info.text("device", "cpu") or "cpu",
            max_concurrency=info.integer("max_concurrency", wants_window, least=1, most=100_000),
            takes_priority=info.flag("takes_priority"),
            price=info.number("price", 1.0),
            profile=_profile(info.section("profile")),
            kv_tokens=info.integer("kv_tokens", 0, least=1, most=MAX_TOKENS) or None,
            max_batch_tokens=info.integer("max_batch_tokens", 0, least=1, most=MAX_TOKENS) or None,
            padded=info.flag("padded"),
            max_batch_inputs=info.integer("max_batch_inputs", 0, least=1, most=2048) or None,
            accelerator=info.text("accelerator"),
            routes=_routes(info),
            weight=weight,
        )
        unread = {"litellm_params": params, "model_info": info}
        for key, section in unread.items():
            if section is params and engine.provider is not None:
                continue  # all of it goes to the library
            self._ignored.add(f"model_list[].{key}", section.path, section.unread())
        self._ignored.add("model_list[]", entry.path, entry.unread())
        return engine, chosen is not None

    def _once(self, warning: str) -> None:
        """Say it of the first entry only."""
        what = warning.partition(" ")[0].rpartition(".")[2]
        if what not in self._said:
            self._said.add(what)
            self._warnings.append(warning)

    def _openai(self, params: Section, provider: str) -> EngineConfig:
        base_url = params.text("api_base", OPENAI_URL if provider == "openai" else None)
        if base_url is None:
            raise SettingsError(
                f"{params.name('api_base')} is missing.", hint="It says where the engine listens."
            )
        address = parse_base_url(base_url, params.name("api_base"))
        return EngineConfig(
            f"{address.host}:{address.port}{_short(address.path)}",
            base_url,
            (),
            api_key=params.text("api_key"),
            first_byte_s=_timeout(params),
        )

    def _through_litellm(self, params: Section, provider: str) -> EngineConfig:
        if provider not in THROUGH_LITELLM:
            meant = near_name(provider, OPENAI_COMPATIBLE)
            if meant:
                raise SettingsError(
                    f"{params.name('model')}: provider {provider!r} is not known.",
                    hint=f"{meant}If the server speaks OpenAI's protocol, write 'openai/' before "
                    "the model.",
                )
            self._warnings.append(
                f"{params.name('model')}: provider {provider!r} is not known here; whether it "
                "exists is left to the litellm library."
            )
        if importlib.util.find_spec("litellm") is None:
            raise MissingDependencyError(
                "litellm", "providers", f"Provider {provider!r} of {params.name('model')}"
            )
        base_url = params.text("api_base")
        where = ""
        if base_url is not None:
            address = parse_base_url(base_url, params.name("api_base"))
            where = f"@{address.host}:{address.port}{_short(address.path)}"
        settings = {key: params.any(key) for key in params.names() if key not in _OURS}
        timeout = _timeout(params)
        return EngineConfig(
            f"{provider}{where}",
            base_url or f"{LITELLM_DRIVER}:{provider}",
            (),
            driver=LITELLM_DRIVER,
            first_byte_s=timeout,
            provider=ProviderTarget(provider, settings),
        )


# What of litellm_params is for the gateway, not for the library.
_OURS = frozenset({"model", "order", "weight", "rpm", "tpm", "max_parallel_requests", "timeout"})


def _names(base: str) -> Iterator[str]:
    """``base``, ``base@2``, ``base@3``, ..."""
    yield base
    n = 1
    while True:
        n += 1
        yield f"{base}@{n}"


def _mode(info: Section) -> Mode | None:
    """What the entry serves; None: LiteLLM has such a mode, this gateway has no route for it."""
    wanted = info.choice("mode", (*MODES, *sorted(_OTHER_MODES)), "chat")
    return next((mode for mode in MODES if mode == wanted), None)


def _routes(info: Section) -> frozenset[str]:
    """Routes that the server has besides those of its driver."""
    named = info.items("routes")
    for name in named:
        if name not in ROUTES:
            near = near_name(name, ROUTES) if isinstance(name, str) else ""
            raise SettingsError(
                f"{info.name('routes')} holds {name!r}, which is no route.",
                hint=f"{near}Known: {', '.join(sorted(ROUTES))}.",
            )
    return frozenset(named)


def _timeout(params: Section) -> float | None:
    return params.seconds("timeout", 0.0, least=0.001) if params.has("timeout") else None


def _weight(params: Section) -> float:
    """The first of LiteLLM's three words for an engine's share that is there."""
    said = [params.number(key, 0.0, most=1e9) for key in ("weight", "rpm", "tpm")]
    return next((value for value in said if value), 1.0)


def _profile(section: Section) -> EngineProfile | None:
    """How long the engine's work takes: seconds, as in :class:`EngineProfile`."""
    names = ("c0", "a", "b", "g", "s0", "alpha")
    known = {name: section.number(name, 0.0, most=3600.0) for name in names}
    section.refuse_unread()
    return EngineProfile(**known, source="gateway.yaml") if section.names() else None


def _short(path: str) -> str:
    return "" if path in ("", "/v1") else path


def _split_model(params: Section) -> tuple[str, str]:
    model = params.required_text("model")
    provider, slash, rest = model.partition("/")
    if not slash:
        return "openai", model
    if not provider or not rest:
        raise SettingsError(
            f"{params.name('model')}={model!r} names no provider or no model.",
            hint="Write PROVIDER/MODEL, such as 'openai/NAME-AT-THE-ENGINE'.",
        )
    return provider, rest


def _difference(before: EngineConfig, after: EngineConfig) -> str | None:
    """Why two entries cannot be one engine; None: they can, its window is one."""
    for what in ("base_url", "api_key", "provider"):
        if getattr(before, what) != getattr(after, what):
            return what
    for what in _OF_ENGINE:
        unsaid, mine, other = _DEFAULTS[what], getattr(before, what), getattr(after, what)
        if mine != other and unsaid not in (mine, other):
            return what
    known = {(model.pool, model.use): model.upstream for model in before.models}
    for model in after.models:
        if known.get(key := (model.pool, model.use), model.upstream) != (model.upstream):
            return f"model for {key[0]!r}"
    return None


def _joined(before: EngineConfig, after: EngineConfig) -> EngineConfig:
    """Two entries for one server are one engine with two models."""
    least: dict[str, Any] = {
        what: min(filter(None, (getattr(before, what), getattr(after, what))), default=None)
        for what in _NARROWER
    }
    said = {
        what: mine if (mine := getattr(before, what)) != _DEFAULTS[what] else getattr(after, what)
        for what in _OF_ENGINE
    }
    models = tuple(dict.fromkeys(before.models + after.models))
    return replace(before, models=models, **least, **said)
