"""Tenants: what each may use, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sage_gateway.rate_limits import UNLIMITED, RateLimit
from sage_prefect.control_plane.events import Band, TenantSpec


@dataclass(frozen=True, slots=True)
class TenantConfig:
    """A tenant and, in the configuration, its key.

    Attributes:
        key: in clear; None: its keys are in the store of keys.
        weight: share of engine time beside other tenants.
        bands: the first of them is the most urgent that its requests get.
        models: names that it may use, ``*`` in one stands for any text; empty: all.
        limit: of all its keys together.
    """

    name: str
    key: str | None = field(default=None, repr=False)
    weight: float = 1.0
    bands: tuple[Band, ...] = tuple(Band)
    max_queued: int | None = None
    max_running: int | None = None
    models: tuple[str, ...] = ()
    limit: RateLimit = UNLIMITED

    def spec(self) -> TenantSpec:
        """What the control plane is told."""
        return TenantSpec(self.name, self.weight, self.max_queued, self.max_running)

    def public(self) -> dict[str, Any]:
        """For the management API and the store: everything but the key."""
        return {
            "name": self.name,
            "weight": self.weight,
            "bands": [band.label for band in self.bands],
            "models": list(self.models),
            **asdict(self.limit),
            "max_queued": self.max_queued,
            "max_running": self.max_running,
        }

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> TenantConfig:
        """The tenant of which :meth:`public` said this."""
        return cls(
            said["name"],
            None,
            said["weight"],
            tuple(Band[label.upper()] for label in said["bands"]),
            said["max_queued"],
            said["max_running"],
            tuple(said["models"]),
            RateLimit(said["rpm"], said["tpm"], said["max_parallel_requests"]),
        )
