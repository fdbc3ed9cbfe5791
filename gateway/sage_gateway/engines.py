"""The engines behind the gateway: where each listens, what it serves, how to speak to it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from sage_gateway.dialects.native_routes import EVERYWHERE, own_routes
from sage_gateway.model_names import Alias, ModelNames, Target
from sage_gateway.served_model import MODES, Mode, ServedModel, use_of
from sage_gateway.upstream import Timeouts
from sage_gateway.upstream_pool import UpstreamPool
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineProfile, EngineSpec, Kind

__all__ = [
    "MODES",
    "Address",
    "Engine",
    "EngineConfig",
    "EngineRegistry",
    "Mode",
    "ProviderTarget",
    "ServedModel",
    "Via",
    "parse_base_url",
]

OPENAI_INPUTS, CAREFUL_INPUTS = 2048, 32
_TAKES_MANY = frozenset({"sentence-transformers", "vllm"})
_ABORT_ONLY_STREAMS = frozenset({"llamacpp"})
# vLLM and llama.cpp have these at the root, where OpenAI's routes are not.
_OUTSIDE_V1 = frozenset({"/tokenize", "/detokenize"})
ENGINE_NAME = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class ProviderTarget:
    """What the litellm library is told of a deployment that does not speak OpenAI's protocol."""

    provider: str
    settings: Mapping[str, Any] = field(repr=False)
    """``litellm_params`` without the gateway's own; holds keys."""


@dataclass(frozen=True, slots=True)
class Via:
    """Where an engine is reached that does not listen itself."""

    base_url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine, from ``model_list`` or from the management API."""

    name: str
    base_url: str
    models: tuple[ServedModel, ...]
    driver: str = "openai"
    device: str = "cpu"
    max_concurrency: int = 8
    api_key: str | None = field(default=None, repr=False)
    first_byte_s: float | None = None
    takes_priority: bool = False
    """It schedules by the body's ``priority`` (vLLM's ``--scheduling-policy priority``)."""
    price: float = 1.0
    profile: EngineProfile | None = None
    kv_tokens: int | None = None
    max_batch_tokens: int | None = None
    max_batch_inputs: int | None = None
    padded: bool = False
    accelerator: str | None = None
    origin: Literal["config", "management"] = "config"
    weight: float = 1.0
    """LiteLLM's: policy ``random`` draws it so often, beside others."""
    routes: frozenset[str] = frozenset()
    """Labels of routes that it has besides those of its driver."""
    provider: ProviderTarget | None = None
    """Reached through the litellm library; ``base_url`` is then for people."""

    @property
    def own_routes(self) -> frozenset[str]:
        """Labels of the routes that it gets in the client's own bytes."""
        if self.provider is not None:
            return EVERYWHERE  # what the litellm library is called for
        return own_routes(self.driver, self.routes)

    @property
    def aborts_only_streams(self) -> bool:
        """Whether the server notices a lost client only while it streams (llama.cpp's)."""
        return self.driver in _ABORT_ONLY_STREAMS

    def spec(self) -> EngineSpec:
        """What the control plane is told."""
        names = tuple(dict.fromkeys(model.pool for model in self.models))
        return EngineSpec(
            self.name,
            names,
            self.max_concurrency,
            self.driver,
            self.device,
            price=self.price,
            profile=self.profile,
            kv_tokens=self.kv_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_inputs=self.most_inputs,
            padded=self.padded,
            accelerator=self.accelerator,
            weight=self.weight,
        )

    @property
    def most_inputs(self) -> int:
        """Inputs that it takes in one call. A server of which nothing is known may be
        text-embeddings-inference, which refuses more than 32 unless it was told otherwise."""
        if self.max_batch_inputs is not None:
            return self.max_batch_inputs
        return OPENAI_INPUTS if self.driver in _TAKES_MANY else CAREFUL_INPUTS

    def public(self) -> dict[str, Any]:
        """For the management API: everything but the key."""
        return {
            "name": self.name,
            "base_url": self.base_url,
            "models": [
                {
                    "name": m.name,
                    "mode": m.mode,
                    "upstream_model": m.upstream or m.name,
                    "order": m.order,
                }
                for m in self.models
            ],
            "driver": self.driver,
            "device": self.device,
            "max_concurrency": self.max_concurrency,
            "takes_priority": self.takes_priority,
            "price": self.price,
            "kv_tokens": self.kv_tokens,
            "max_batch_tokens": self.max_batch_tokens,
            "max_batch_inputs": self.most_inputs,
            "accelerator": self.accelerator,
            "padded": self.padded,
            "profile": asdict(self.profile) if self.profile is not None else None,
            "weight": self.weight,
            "routes": sorted(self.own_routes),
            "has_api_key": self.api_key is not None,
            "origin": self.origin,
        }


@dataclass(frozen=True, slots=True)
class Address:
    """A checked ``base_url``."""

    host: str
    port: int
    path: str
    secure: bool

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def parse_base_url(base_url: str, where: str) -> Address:
    """Check an engine's URL.

    Raises:
        SettingsError: not an http(s) URL, or with user, query or fragment; names ``where``.
    """
    hint = "Use a URL such as http://127.0.0.1:8001/v1."
    if not base_url.isascii() or any(c <= " " for c in base_url):
        raise SettingsError(f"{where} holds spaces or characters that no URL has.", hint=hint)
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{where}={base_url!r} is not a URL ({error}).", hint=hint) from None
    if parts.username or parts.password:
        raise SettingsError(
            f"{where} holds a user or password.", hint="Put the key into api_key instead."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{where}={base_url!r} is not an http or https URL.", hint=hint)
    if parts.query or parts.fragment:
        raise SettingsError(f"{where}={base_url!r} has a query or fragment.", hint=hint)
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"), secure)


class Engine:
    """An engine that requests can be sent to.

    Args:
        via: where it is reached instead of its ``base_url``.
    """

    def __init__(self, config: EngineConfig, timeouts: Timeouts, via: Via | None = None) -> None:
        base_url, api_key = (
            (config.base_url, config.api_key) if via is None else (via.base_url, via.api_key)
        )
        address = parse_base_url(base_url, f"base_url of engine {config.name!r}")
        if not ENGINE_NAME.fullmatch(config.name):
            raise SettingsError(
                f"engine name {config.name[:80]!r} is not usable.",
                hint="Use 1 to 128 of the characters A-Z a-z 0-9 . _ : @ / -",
            )
        if config.api_key is not None and not _HEADER_SAFE.fullmatch(config.api_key):
            raise SettingsError(
                f"the api_key of engine {config.name!r} is empty or holds spaces or characters "
                "that no header may have."
            )
        if config.first_byte_s is not None:
            timeouts = replace(timeouts, first_byte_s=config.first_byte_s)
        self.config = config
        self.name = config.name
        self.header_name = config.name.encode("ascii")
        self.address = address
        tls = ssl.create_default_context() if address.secure else None
        self.pool = UpstreamPool(address.host, address.port, tls, timeouts)
        self._models = {(m.pool, m.use): m for m in config.models}
        self.routes = config.own_routes
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head_end = (
            f" HTTP/1.1\r\nhost: {address.authority}\r\n{authorization}"
            "content-type: application/json\r\naccept-encoding: identity\r\n"
        ).encode("latin-1")
        self._heads: dict[str, bytes] = {}

    def model(self, pool: str, kind: Kind) -> ServedModel | None:
        """The model that serves requests of this kind in the control plane's ``pool``."""
        return self._models.get((pool, use_of(kind)))

    def post_head(self, path: str, length: int, extra: bytes) -> bytes:
        """Request line and headers of a POST.

        Args:
            path: below ``base_url``, such as ``/chat/completions``.
            length: bytes of the body.
            extra: further header lines, each ending with CRLF.
        """
        start = self._heads.get(path)
        if start is None:
            base = self.address.path
            if path in _OUTSIDE_V1:
                base = base.removesuffix("/v1")
            target = f"POST {base}{path}".encode("ascii")
            start = self._heads[path] = target + self._head_end
        return b"%bcontent-length: %d\r\n%b\r\n" % (start, length, extra)

    def get_head(self, path: str) -> bytes:
        """A whole GET request, for probes; ``path`` is absolute."""
        return f"GET {path}".encode("ascii") + self._head_end + b"\r\n"

    def close(self) -> None:
        self.pool.close()


def _by_itself(config: EngineConfig) -> Via | None:
    return None


class EngineRegistry:
    """Engines by name, and which of them a model's name leads to.

    Args:
        via: says of an engine where it is reached, if not at its ``base_url``.
    """

    def __init__(
        self, timeouts: Timeouts, via: Callable[[EngineConfig], Via | None] = _by_itself
    ) -> None:
        self._timeouts = timeouts
        self._via = via
        self._engines: dict[str, Engine] = {}
        self._aliases: Mapping[str, Alias] = {}
        self.names = ModelNames((), {})

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def __len__(self) -> int:
        return len(self._engines)

    def get(self, name: str) -> Engine | None:
        return self._engines.get(name)

    def make(self, config: EngineConfig, timeouts: Timeouts | None = None) -> Engine:
        """An engine that is not in the registry yet.

        Raises:
            SettingsError: the URL, the name or the key is not usable.
        """
        return Engine(config, timeouts or self._timeouts, self._via(config))

    def add(self, config: EngineConfig) -> bool:
        """Add or replace; whether it is new.

        Raises:
            SettingsError: the URL, the name or the key is not usable; nothing has changed.
        """
        return self.put(self.make(config))

    def put(self, engine: Engine) -> bool:
        """Add or replace; whether it is new."""
        before = self._engines.get(engine.name)
        self._engines[engine.name] = engine
        self._index()
        if before is not None:
            before.close()
        return before is None

    def remove(self, name: str) -> bool:
        """Forget an engine; its running exchanges end by themselves."""
        engine = self._engines.pop(name, None)
        if engine is None:
            return False
        self._index()
        engine.close()
        return True

    def rename(self, aliases: Mapping[str, Alias]) -> None:
        """Take these aliases instead of the ones before."""
        self._aliases = aliases
        self._index()

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """For the engines that come from now on."""
        self._timeouts = timeouts

    def target(self, model: str, kind: Kind) -> Target | None:
        """Who serves ``model`` for requests of this kind; None: nobody."""
        return self.names.target(model, kind)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def _index(self) -> None:
        served = (model for engine in self._engines.values() for model in engine.config.models)
        self.names = ModelNames(served, self._aliases)
