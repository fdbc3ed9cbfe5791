"""Keys that were made at run time: what is kept of them, never the key itself."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sage_gateway.rate_limits import UNLIMITED, RateLimit
from sage_prefect.control_plane.events import Band

_PREFIX = "sk-sage-"
_SHOWN = 4


def digest_of(key: bytes) -> bytes:
    """What a key is recognised by. Keys are 256 random bits: a plain hash cannot be searched."""
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A new key of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key of a tenant. Times are seconds since 1970.

    Attributes:
        key_id: for people and the API; says nothing of the key.
        name: what the operator calls it.
        hint: the key's last characters.
        bands, models: narrower than the tenant's; empty: the tenant's.
        expires_at: it opens nothing from then on; None: it does not expire.
    """

    key_id: str
    name: str
    tenant: str
    digest: bytes
    hint: str
    created_at: float
    bands: tuple[Band, ...] = ()
    models: tuple[str, ...] = ()
    limit: RateLimit = UNLIMITED
    expires_at: float | None = None
    revoked_at: float | None = None

    @classmethod
    def make(cls, key: str, **fields: Any) -> KeyRecord:
        """The record of a new key."""
        key_id = f"key-{secrets.token_hex(6)}"
        return cls(key_id=key_id, digest=digest_of(key.encode()), hint=key[-_SHOWN:], **fields)

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def public(self, now: float) -> dict[str, Any]:
        """For the management API."""
        return {
            "id": self.key_id,
            "name": self.name,
            "tenant": self.tenant,
            "key": f"{_PREFIX}...{self.hint}",
            "state": self.state(now),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
            **self.rights(),
        }

    def rights(self) -> dict[str, Any]:
        """What it may, as JSON."""
        return {
            "bands": [band.label for band in self.bands],
            "models": list(self.models),
            **asdict(self.limit),
        }

    @classmethod
    def of(cls, said: Mapping[str, Any], rights: Mapping[str, Any]) -> KeyRecord:
        """The record with these columns and of which :meth:`rights` said this."""
        return cls(
            **said,
            bands=tuple(Band[label.upper()] for label in rights["bands"]),
            models=tuple(rights["models"]),
            limit=RateLimit(rights["rpm"], rights["tpm"], rights["max_parallel_requests"]),
        )
