"""``sage_settings.tenants`` and ``sage_settings.keys``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sage_gateway.config_section import Section
from sage_gateway.rate_limits import RateLimit
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.control_plane.events import Band


@dataclass(frozen=True, slots=True)
class KeyStoreConfig:
    """Where keys and tenants that were made at run time are kept.

    Attributes:
        file: an SQLite database; None: ``gateway-keys.sqlite`` in the state folder.
        refresh_s: how often changes of other gateways with the same file are looked for, and
            changes that could not be stored are stored again.
    """

    file: Path | None = None
    refresh_s: float = 1.0


def key_store_of(sage: Section) -> KeyStoreConfig:
    """``sage_settings.keys``."""
    section, default = sage.section("keys"), KeyStoreConfig()
    file = section.text("file")
    config = KeyStoreConfig(
        Path(file).expanduser() if file is not None else None,
        section.seconds("refresh_s", default.refresh_s, least=0.01),
    )
    section.refuse_unread()
    return config


def tenants_of(sage: Section) -> tuple[TenantConfig, ...]:
    """``sage_settings.tenants``.

    Raises:
        SettingsError: names the key, its value and what was expected.
    """
    tenants: list[TenantConfig] = []
    for i, item in enumerate(sage.items("tenants")):
        entry = Section(item, f"sage_settings.tenants[{i}]")
        tenant = TenantConfig(
            entry.required_text("name"),
            entry.text("key"),
            entry.number("weight", 1.0, least=0.001),
            _bands(entry) or tuple(Band),
            _cap(entry, "max_queued"),
            _cap(entry, "max_running"),
            _models(entry),
            RateLimit(
                _cap(entry, "rpm", 1), _cap(entry, "tpm", 1), _cap(entry, "max_parallel_requests")
            ),
        )
        entry.refuse_unread()
        if any(tenant.name == other.name for other in tenants):
            raise SettingsError(f"{entry.name('name')}={tenant.name!r} is there twice.")
        if tenant.key is not None and any(tenant.key == other.key for other in tenants):
            raise SettingsError(f"{entry.name('key')} is another tenant's key, too.")
        tenants.append(tenant)
    return tuple(tenants)


def _bands(entry: Section) -> tuple[Band, ...]:
    labels = [band.label for band in Band]
    bands: list[Band] = []
    for label in entry.items("bands"):
        if label not in labels:
            raise SettingsError(
                f"{entry.name('bands')} holds {label!r}.",
                hint=f"{near_name(str(label), labels)}Known: {', '.join(labels)}.",
            )
        bands.append(Band[label.upper()])
    return tuple(bands)


def _models(entry: Section) -> tuple[str, ...]:
    names = entry.items("models")
    if not all(isinstance(name, str) and name for name in names):
        raise SettingsError(f"{entry.name('models')} holds what is no name of a model.")
    return tuple(names)


def _cap(entry: Section, key: str, least: int = 0) -> int | None:
    return entry.integer(key, 0, least=least) if entry.has(key) else None
