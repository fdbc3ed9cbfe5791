"""``gateway.yaml``: LiteLLM's shape for models and routing, ``sage_settings`` for what is ours.

An unknown key in ``sage_settings`` is an error. A LiteLLM key that this gateway does not honour
is reported at start (``GatewayConfig.warnings``), so that an existing file works and nothing is
ignored silently.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sage_gateway.config_models import DEFAULT_WINDOW, ModelList
from sage_gateway.config_router import DEFAULT_POLICY, RouterConfig, RoutingSections
from sage_gateway.config_section import Section
from sage_gateway.config_tenants import KeyStoreConfig, key_store_of, tenants_of
from sage_gateway.config_tracing import TracingConfig, tracing_config
from sage_gateway.engines import EngineConfig
from sage_gateway.litellm_keys import IgnoredKeys
from sage_gateway.policy_warnings import unused_settings
from sage_gateway.recording import RecordingConfig, recording_config
from sage_gateway.replicas import ALONE, Replicas
from sage_gateway.tenants import TenantConfig
from sage_gateway.upstream import Timeouts
from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.control_plane.events import Band, BandSpec, Limits
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS
from sage_prefect.control_plane.strategies import check_policy

__all__ = [
    "DEFAULT_POLICY",
    "GatewayConfig",
    "HealthConfig",
    "ServerLimits",
    "TenantConfig",
    "load_config",
    "parse_config",
]

_SECTIONS = (
    *("model_list", "router_settings", "litellm_settings", "general_settings"),
    *("environment_variables", "sage_settings"),
)
_REFERENCE = "os.environ/"


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of clients' connections and requests."""

    max_body_bytes: int = 64 << 20
    max_header_bytes: int = 64 << 10
    read_timeout_s: float = 30.0
    """For a request's head, and for each further stretch of its body."""
    client_stall_s: float = 60.0
    """A client that takes nothing of its answer for so long is cut off."""
    max_buffered_answer_bytes: int = 8 << 20
    """A non-streaming answer up to this size is complete before its first byte leaves."""
    shutdown_s: float = 30.0
    max_connections: int = 0
    """Of clients at once; 0: as many as descriptors allow."""
    max_connections_per_ip: int = 0
    """0: no limit of its own."""
    access_log: bool = False
    tls_certificate: str | None = None
    """A PEM file with the chain; with ``tls_key`` the gateway speaks https alone."""
    tls_key: str | None = None


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When an engine is suspect and how it is probed."""

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 5.0
    failures: int = 3
    """Lost connections in a row until an engine is suspect; a refused connection is at once."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The checked configuration."""

    engines: tuple[EngineConfig, ...] = ()
    policy: str = DEFAULT_POLICY
    router: RouterConfig = field(default_factory=RouterConfig)
    master_key: str | None = field(default=None, repr=False)
    tenants: tuple[TenantConfig, ...] = ()
    keys: KeyStoreConfig = field(default_factory=KeyStoreConfig)
    bands: tuple[BandSpec, ...] = ()
    """Bands whose promises the configuration names."""
    scheduling: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    server: ServerLimits = field(default_factory=ServerLimits)
    health: HealthConfig = field(default_factory=HealthConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    replicas: Replicas = ALONE
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """``environment_variables``: for the process, once the configuration is in force."""
    warnings: tuple[str, ...] = ()


_LIMITS, _TIMEOUTS, _SERVER, _HEALTH = Limits(), Timeouts(), ServerLimits(), HealthConfig()


def load_config(
    file: Path, environ: Mapping[str, str] | None = None, policy: str | None = None
) -> GatewayConfig:
    """Read and check a configuration file.

    Args:
        policy: instead of the file's.

    Raises:
        SettingsError: unreadable, not YAML, or a key is wrong: names file, key and what is
            expected.
        UnknownNameError: the routing strategy is not known.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"gateway config {str(file)!r} cannot be read ({error.strerror}).",
            hint="Give an existing file with --config; deployments/gateway.yaml is an example.",
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"gateway config {str(file)!r} is not UTF-8 text.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise SettingsError(
            f"gateway config {str(file)!r} is not YAML{where}: {problem}."
        ) from None
    try:
        return parse_config(content, environ, policy)
    except SettingsError as error:
        raise SettingsError(f"{file}: {error.message}", hint=error.hint) from None


def parse_config(
    content: Any, environ: Mapping[str, str] | None = None, policy: str | None = None
) -> GatewayConfig:
    """Check a configuration that YAML has parsed.

    Args:
        policy: instead of the configuration's.

    Raises:
        SettingsError: names the key, its value and what was expected.
        UnknownNameError: the routing strategy is not known.
    """
    env = dict(os.environ if environ is None else environ)
    environment = _environment(Section(content, "").section("environment_variables"), env)
    env |= environment
    root = Section(_resolve(content, env, ""), "")
    root.any("environment_variables")
    warnings: list[str] = []
    ignored = IgnoredKeys()
    router, litellm = root.section("router_settings"), root.section("litellm_settings")
    sections = RoutingSections(router, litellm, warnings)
    window = router.integer("default_max_parallel_requests", DEFAULT_WINDOW, least=1, most=100_000)
    engines = ModelList(window, warnings, ignored).read(root)
    routing = sections.read(
        (model for engine in engines for model in engine.models), policy_given=policy is not None
    )
    section, key = sections.of("num_retries")
    retries = section.integer(key, _LIMITS.max_retries, most=10)
    section, key = sections.of("timeout", "request_timeout")
    first_byte_s = section.seconds(key, _TIMEOUTS.first_byte_s)
    general = root.section("general_settings")
    master_key = general.text("master_key")
    body_mb = general.number("max_request_size_mb", 0.0, most=1 << 20)
    sage = root.section("sage_settings")
    for key in root.unread():
        ignored.add("", "", [key])
        if ignored.is_unknown("", key) and near_name(key, _SECTIONS):
            raise SettingsError(
                f"unknown section {key!r}.",
                hint=f"{near_name(key, _SECTIONS)}Known: {', '.join(_SECTIONS)}.",
            )
    for section in (router, litellm, general):
        ignored.add(section.path, section.path, section.unread())
    config = GatewayConfig(
        engines=engines,
        policy=check_policy(policy) if policy is not None else routing.policy,
        router=routing,
        master_key=master_key,
        tenants=tenants_of(sage),
        keys=key_store_of(sage),
        bands=_bands(sage),
        scheduling=_scheduling(sage, retries),
        timeouts=_timeouts(sage, first_byte_s),
        server=_server(sage, round(body_mb * (1 << 20)) or _SERVER.max_body_bytes),
        health=_health(sage),
        recording=recording_config(sage),
        tracing=tracing_config(sage),
        replicas=_replicas(sage, engines, warnings),
        environment=environment,
    )
    sage.refuse_unread()
    said = (*warnings, *ignored.lines(), *unused_settings(config, config.policy))
    return replace(config, warnings=said)


def _environment(section: Section, env: Mapping[str, str]) -> dict[str, str]:
    """``environment_variables``, each as text."""
    variables: dict[str, str] = {}
    for name in section.names():
        value = _resolve(section.any(name), env, section.name(name))
        if not isinstance(value, (str, int, float, bool)) or not name or "=" in name:
            raise SettingsError(f"{section.name(name)} is no variable with a plain value.")
        variables[name] = str(value)
    return variables


def _resolve(value: Any, env: Mapping[str, str], path: str) -> Any:
    """Replace every ``os.environ/NAME``."""
    if isinstance(value, dict):
        return {
            key: _resolve(item, env, f"{path}.{key}" if path else str(key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve(item, env, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(_REFERENCE):
        name = value.removeprefix(_REFERENCE)
        found = env.get(name)
        if not found:
            raise SettingsError(
                f"{path} refers to the environment variable {name!r}, which is not set.",
                hint=f"Export {name} before the start, or remove the line.",
            )
        return found
    return value


# -- the sections -----------------------------------------------------------------------


def _bands(sage: Section) -> tuple[BandSpec, ...]:
    bands = sage.section("bands")
    found: list[BandSpec] = []
    for band in Band:
        slo = bands.section(band.label)
        ttft = slo.integer("ttft_slo_ms", 0, least=1)
        tpot = slo.integer("tpot_slo_ms", 0, least=1)
        if ttft or tpot:
            found.append(
                replace(
                    DEFAULT_BANDS[band],
                    ttft_slo_s=ttft / 1000 if ttft else None,
                    tpot_slo_s=tpot / 1000 if tpot else None,
                )
            )
        slo.refuse_unread()
    bands.refuse_unread()
    return tuple(found)


def _scheduling(sage: Section, retries: int) -> Limits:
    queue = sage.section("queue")
    limits = Limits(
        queue.integer("max_requests", _LIMITS.max_queued_requests),
        queue.integer("max_bytes", _LIMITS.max_queued_bytes),
        queue.seconds("timeout_s", _LIMITS.queue_timeout_s),
        retries,
        queue.seconds("unavailable_wait_s", _LIMITS.unavailable_wait_s, least=0.0),
    )
    queue.refuse_unread()
    return limits


def _timeouts(sage: Section, first_byte_s: float) -> Timeouts:
    section = sage.section("timeouts")
    timeouts = Timeouts(
        section.seconds("connect_s", _TIMEOUTS.connect_s),
        section.seconds("first_byte_s", first_byte_s),
        section.seconds("idle_s", _TIMEOUTS.idle_s),
        section.seconds("unreachable_s", _TIMEOUTS.unreachable_s, least=1.0),
    )
    section.refuse_unread()
    return timeouts


def _server(sage: Section, max_body_bytes: int) -> ServerLimits:
    section = sage.section("server")
    limits = ServerLimits(
        section.integer("max_body_bytes", max_body_bytes, least=1024),
        section.integer("max_header_bytes", _SERVER.max_header_bytes, least=1024),
        section.seconds("read_timeout_s", _SERVER.read_timeout_s),
        section.seconds("client_stall_s", _SERVER.client_stall_s),
        section.integer("max_buffered_answer_bytes", _SERVER.max_buffered_answer_bytes),
        section.seconds("shutdown_s", _SERVER.shutdown_s, least=0.0),
        section.integer("max_connections", _SERVER.max_connections),
        section.integer("max_connections_per_ip", _SERVER.max_connections_per_ip),
        section.flag("access_log"),
        section.text("tls_certificate"),
        section.text("tls_key"),
    )
    section.refuse_unread()
    _check_tls(limits)
    return limits


def _check_tls(limits: ServerLimits) -> None:
    certificate, key = limits.tls_certificate, limits.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise SettingsError(
            "sage_settings.server has only one of tls_certificate and tls_key.",
            hint="Give both, as PEM files.",
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"sage_settings.server.tls_certificate={certificate!r} with tls_key={key!r} cannot be "
            f"used ({error.strerror or error}).",
            hint="Both are PEM files that the gateway may read, and the key is the certificate's.",
        ) from None


def _replicas(sage: Section, engines: tuple[EngineConfig, ...], warnings: list[str]) -> Replicas:
    section = sage.section("replicas")
    count = section.integer("count", 1, least=1, most=1000)
    index = section.integer("index", 0, most=count - 1)
    section.refuse_unread()
    for engine in engines:
        if engine.max_concurrency < count:
            warnings.append(
                f"engine {engine.name!r} may hold {engine.max_concurrency} requests, and {count} "
                f"gateways send it one each: together up to {count}."
            )
    return Replicas(count, index)


def _health(sage: Section) -> HealthConfig:
    section = sage.section("health")
    health = HealthConfig(
        section.seconds("probe_interval_s", _HEALTH.probe_interval_s),
        section.seconds("probe_timeout_s", _HEALTH.probe_timeout_s),
        section.integer("failures", _HEALTH.failures, least=1),
    )
    section.refuse_unread()
    return health
