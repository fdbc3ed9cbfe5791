"""``gateway.yaml``: LiteLLM's shape for models and routing, ``sage_settings`` for what is ours.

An unknown key in ``sage_settings`` is an error. A LiteLLM key that this gateway does not honour
is reported at start (``GatewayConfig.warnings``), so that an existing file works and nothing is
ignored silently.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sage_gateway.config_models import engines_of
from sage_gateway.config_section import Section
from sage_gateway.engines import EngineConfig
from sage_gateway.policy_warnings import unused_settings
from sage_gateway.recording import RecordingConfig, recording_config
from sage_gateway.upstream import Timeouts
from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.control_plane.events import Band, BandSpec, Limits
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS
from sage_prefect.control_plane.routing_strategies import ROUTING_STRATEGIES, resolve
from sage_prefect.control_plane.strategies import check_policy

DEFAULT_POLICY = "hybrid"

_SECTIONS = ("model_list", "router_settings", "general_settings", "sage_settings")
# Sections of LiteLLM that are no misspelling of one of these.
_LITELLM_SECTIONS = frozenset({"litellm_settings", "environment_variables", "callback_settings"})
_REFERENCE = "os.environ/"


@dataclass(frozen=True, slots=True)
class TenantConfig:
    """A tenant and its key."""

    name: str
    key: str
    weight: float = 1.0
    bands: tuple[Band, ...] = tuple(Band)
    max_queued: int | None = None
    max_running: int | None = None


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
    master_key: str | None = None
    tenants: tuple[TenantConfig, ...] = ()
    bands: tuple[BandSpec, ...] = ()
    """Bands whose promises the configuration names."""
    scheduling: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    server: ServerLimits = field(default_factory=ServerLimits)
    health: HealthConfig = field(default_factory=HealthConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
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
    env = os.environ if environ is None else environ
    root = Section(_resolve(content, env, ""), "")
    warnings: list[str] = []
    engines = engines_of(root, warnings)
    router = root.section("router_settings")
    chosen = _policy(router, [] if policy is not None else warnings)
    retries = router.integer("num_retries", _LIMITS.max_retries, most=10)
    first_byte_s = router.seconds("timeout", _TIMEOUTS.first_byte_s)
    general = root.section("general_settings")
    master_key = general.text("master_key")
    sage = root.section("sage_settings")
    for key in root.unread():
        if key not in _LITELLM_SECTIONS and near_name(key, _SECTIONS):
            raise SettingsError(
                f"unknown section {key!r}.",
                hint=f"{near_name(key, _SECTIONS)}Known: {', '.join(_SECTIONS)}.",
            )
    for section in (router, general, root):
        warnings += [f"{section.name(key)} is not honoured." for key in section.unread()]
    config = GatewayConfig(
        engines=engines,
        policy=check_policy(policy) if policy is not None else chosen,
        master_key=master_key,
        tenants=_tenants(sage, warnings),
        bands=_bands(sage),
        scheduling=_scheduling(sage, retries),
        timeouts=_timeouts(sage, first_byte_s),
        server=_server(sage),
        health=_health(sage),
        recording=recording_config(sage),
    )
    sage.refuse_unread()
    return replace(config, warnings=(*warnings, *unused_settings(config, config.policy)))


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


def _policy(router: Section, warnings: list[str]) -> str:
    wanted = router.text("routing_strategy")
    if wanted is None:
        return DEFAULT_POLICY
    theirs = ROUTING_STRATEGIES.get(wanted)
    if theirs is not None and wanted != "least-busy":
        warnings.append(
            f"router_settings.routing_strategy {wanted!r} is served by {theirs.policy!r}: "
            f"{theirs.reason}."
        )
    return resolve(wanted)


def _tenants(sage: Section, warnings: list[str]) -> tuple[TenantConfig, ...]:
    tenants: list[TenantConfig] = []
    labels = [band.label for band in Band]
    for i, item in enumerate(sage.items("tenants")):
        entry = Section(item, f"sage_settings.tenants[{i}]")
        bands: list[Band] = []
        for label in entry.items("bands"):
            if label not in labels:
                raise SettingsError(
                    f"{entry.name('bands')} holds {label!r}.",
                    hint=f"{near_name(str(label), labels)}Known: {', '.join(labels)}.",
                )
            bands.append(Band[label.upper()])
        tenant = TenantConfig(
            entry.required_text("name"),
            entry.required_text("key"),
            entry.number("weight", 1.0, least=0.001),
            tuple(bands) or tuple(Band),
            _cap(entry, "max_queued"),
            _cap(entry, "max_running"),
        )
        for limit in ("rpm", "tpm"):
            if entry.integer(limit, 0):
                warnings.append(f"{entry.name(limit)} is not enforced by this version.")
        entry.refuse_unread()
        if any(tenant.name == other.name for other in tenants):
            raise SettingsError(f"{entry.name('name')}={tenant.name!r} is there twice.")
        if any(tenant.key == other.key for other in tenants):
            raise SettingsError(f"{entry.name('key')} is another tenant's key, too.")
        tenants.append(tenant)
    return tuple(tenants)


def _cap(entry: Section, key: str) -> int | None:
    return entry.integer(key, 0) if entry.has(key) else None


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
    )
    section.refuse_unread()
    return timeouts


def _server(sage: Section) -> ServerLimits:
    section = sage.section("server")
    limits = ServerLimits(
        section.integer("max_body_bytes", _SERVER.max_body_bytes, least=1024),
        section.integer("max_header_bytes", _SERVER.max_header_bytes, least=1024),
        section.seconds("read_timeout_s", _SERVER.read_timeout_s),
        section.seconds("client_stall_s", _SERVER.client_stall_s),
        section.integer("max_buffered_answer_bytes", _SERVER.max_buffered_answer_bytes),
        section.seconds("shutdown_s", _SERVER.shutdown_s, least=0.0),
    )
    section.refuse_unread()
    return limits


def _health(sage: Section) -> HealthConfig:
    section = sage.section("health")
    health = HealthConfig(
        section.seconds("probe_interval_s", _HEALTH.probe_interval_s),
        section.seconds("probe_timeout_s", _HEALTH.probe_timeout_s),
        section.integer("failures", _HEALTH.failures, least=1),
    )
    section.refuse_unread()
    return health
