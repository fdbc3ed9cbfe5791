"""Another configuration for a gateway that runs: checked whole, then put in force in one step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_gateway.config import GatewayConfig, load_config
from sage_gateway.engines import Engine
from sage_prefect.control_plane.events import BandSpec
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS

if TYPE_CHECKING:
    from sage_gateway.gateway import Gateway

# What listens and what writes is set up once.
_NEEDS_RESTART = {
    "server": (
        *("max_header_bytes", "read_timeout_s", "shutdown_s"),
        *("max_connections", "max_connections_per_ip", "tls_certificate", "tls_key"),
    ),
    "recording": ("file", "max_bytes", "when_full", "flush_s"),
    "tracing": ("enabled", "endpoint", "sample_ratio", "service_name"),
    "keys": ("file", "refresh_s"),
    "replicas": ("count", "index"),
    "timeouts": ("unreachable_s",),
}


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the configuration comes from.

    Attributes:
        policy, record: of the command line; they stand above the file's.
        environ: variables for ``os.environ/NAME``; None: the process's.
    """

    file: Path
    policy: str | None = None
    record: Path | None = None
    environ: Mapping[str, str] | None = None

    def load(self) -> GatewayConfig:
        """Read and check the file.

        Raises:
            SettingsError, UnknownNameError, MissingDependencyError: as of ``load_config``.
        """
        config = load_config(self.file, self.environ, self.policy)
        if self.record is None:
            return config
        return replace(config, recording=replace(config.recording, file=self.record))


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload has changed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    policy: str | None = None
    warnings: tuple[str, ...] = ()

    def public(self) -> dict[str, Any]:
        """For the management API."""
        return {
            "engines": {
                "added": list(self.added),
                "changed": list(self.changed),
                "removed": list(self.removed),
            },
            "policy": self.policy,
            "warnings": list(self.warnings),
        }


def apply(gateway: Gateway, config: GatewayConfig) -> Changes:
    """Put ``config`` in force. Running requests go on; nothing awaits, so nobody sees half of it.

    Engines that registered by the management API stay, and so does a policy that was set there, as
    long as the file's own has not changed.

    Raises:
        SettingsError: an engine or a key is not usable; nothing has changed.
    """
    before = gateway.config
    wanted = {engine.name: engine for engine in config.engines}
    has_other_timeouts = config.timeouts != before.timeouts
    made: list[Engine] = []
    changed: list[str] = []
    for engine in wanted.values():
        known = gateway.engines.get(engine.name)
        if known is not None and known.config == engine and not has_other_timeouts:
            continue
        made.append(gateway.engines.make(engine, config.timeouts))
        if known is not None:
            changed.append(engine.name)
    gateway.keys.configure(config.tenants, config.master_key)
    # -- from here on nothing fails ---------------------------------------------------------
    os.environ.update(config.environment)
    removed = [
        engine.name
        for engine in gateway.engines
        if engine.config.origin == "config" and engine.name not in wanted
    ]
    gateway.config = config
    gateway.engines.set_timeouts(config.timeouts)
    gateway.put_engines(made)
    for name in removed:
        gateway.remove(name)
    gateway.serve_providers()
    gateway.engines.rename(config.router.aliases)
    gateway.inference.fallbacks = config.router.fallbacks
    gateway.inference.limits = config.server
    gateway.cooldown.config = config.router.cooldown
    gateway.health.configure(config.health)
    gateway.scheduler.set_limits(config.scheduling)
    gateway.configure_shares(_bands(before, config))
    policy = config.policy if config.policy != before.policy else None
    if policy is not None:
        gateway.set_policy(policy)
    return Changes(
        tuple(engine.name for engine in made if engine.name not in changed),
        tuple(changed),
        tuple(removed),
        policy,
        (*config.warnings, *_left_for_restart(before, config)),
    )


def _bands(before: GatewayConfig, after: GatewayConfig) -> tuple[BandSpec, ...]:
    """Promises of ``after``; a band that has lost its own gets the default."""
    said = {spec.band: spec for spec in after.bands}
    lost = {spec.band: DEFAULT_BANDS[spec.band] for spec in before.bands}
    return tuple({**lost, **said}.values())


def _left_for_restart(before: GatewayConfig, after: GatewayConfig) -> list[str]:
    said = []
    for section, names in _NEEDS_RESTART.items():
        for name in names:
            old, new = (getattr(getattr(c, section), name) for c in (before, after))
            if old != new:
                said.append(f"sage_settings.{section}.{name} takes effect at the next start.")
    return said
