"""Who is calling: keys are compared by their SHA-256 in constant time and never kept in clear."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sage_gateway.errors import HttpError
from sage_gateway.key_records import KeyRecord, digest_of
from sage_gateway.model_access import ModelAccess
from sage_gateway.rate_limits import Meter, RateLimit, limited
from sage_gateway.replicas import ALONE, Replicas
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.request_classifier import Entitlement

_BEARER = b"bearer "
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="sage"'),)
_ALL_MODELS = ModelAccess()


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key, and what it may."""

    entitlement: Entitlement
    may_manage: bool
    access: ModelAccess = _ALL_MODELS
    meters: tuple[Meter, ...] = ()
    """What limits it: its own, its tenant's."""
    expires_at: float | None = None
    """Seconds since 1970."""


class CallerMemo:
    """Who sent a head that its connection may send again, as :meth:`KeyRing.caller` found."""

    __slots__ = ("caller", "generation")

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.generation = 0


_MASTER = Caller(Entitlement("default", Band.CRITICAL), True)


class KeyRing:
    """All keys of this gateway, in memory: no request waits for a disk.

    Args:
        master_key: opens everything; None only together with ``open_to_all``.
        tenants: of the configuration; their keys open the inference routes.
        open_to_all: no key is asked for (loopback only; the caller has checked that).
        replicas: limits are shared with so many other gateways.

    Raises:
        SettingsError: a tenant has the master key.
    """

    def __init__(
        self,
        master_key: str | None,
        tenants: Iterable[TenantConfig] = (),
        *,
        open_to_all: bool = False,
        replicas: Replicas = ALONE,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._anyone = _MASTER if open_to_all else None
        self._replicas = replicas
        self._monotonic = monotonic
        self._wall = wall
        self._meters: dict[tuple[str, str], Meter] = {}
        # Found by the hash's first bytes, decided by the whole hash.
        self._by_prefix: dict[bytes, tuple[bytes, Caller]] = {}
        self._master = None if master_key is None else digest_of(master_key.encode())
        self._generation = 0
        self._configured = tuple(tenants)
        self._stored: tuple[TenantConfig, ...] = ()
        self._records: tuple[KeyRecord, ...] = ()
        self._rebuild()

    @property
    def tenants(self) -> tuple[TenantConfig, ...]:
        """Of the configuration, then those made at run time."""
        names = {tenant.name for tenant in self._configured}
        return (*self._configured, *(t for t in self._stored if t.name not in names))

    @property
    def configured(self) -> frozenset[str]:
        """Names of the configuration's tenants."""
        return frozenset(tenant.name for tenant in self._configured)

    def configure(self, tenants: Iterable[TenantConfig], master_key: str | None = None) -> None:
        """Take the tenants of another configuration, and its master key if it has one.

        Raises:
            SettingsError: a tenant has the master key; nothing has changed.
        """
        before = self._master, self._configured
        if master_key is not None and self._anyone is None:
            self._master = digest_of(master_key.encode())
        self._configured = tuple(tenants)
        try:
            self._rebuild()
        except SettingsError:
            self._master, self._configured = before
            raise

    def take(self, tenants: Iterable[TenantConfig], records: Iterable[KeyRecord]) -> None:
        """Take the tenants and keys that were made at run time: from now on no others open."""
        self._stored, self._records = tuple(tenants), tuple(records)
        self._rebuild()

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Who sent these headers.

        Raises:
            HttpError: 401, no key, a wrong one, or one that has expired.
        """
        if self._anyone is not None:
            return self._anyone
        value = headers.get(b"authorization")
        if value is None and (alone := headers.get(b"x-api-key")) is not None:
            value = _BEARER + alone  # as Anthropic's clients send it
        if value is None or value[:7].lower() != _BEARER:
            raise HttpError(
                401,
                "No API key was given. Send the header `Authorization: Bearer KEY`.",
                code="missing_api_key",
                headers=_CHALLENGE,
            )
        digest = digest_of(value[7:].strip())
        bucket = self._by_prefix.get(digest[:8])
        if bucket is None or not hmac.compare_digest(bucket[0], digest):
            raise HttpError(
                401, "The API key is not valid.", code="invalid_api_key", headers=_CHALLENGE
            )
        caller = bucket[1]
        if caller.expires_at is not None and caller.expires_at <= self._wall():
            raise HttpError(
                401, "The API key has expired.", code="expired_api_key", headers=_CHALLENGE
            )
        return caller

    def caller_again(self, headers: dict[bytes, bytes], memo: CallerMemo) -> Caller:
        """As :meth:`caller`, of a head that is, byte for byte, the one ``memo`` is of: it is
        looked up again only when the keys have changed, or if it expires.

        Raises:
            HttpError: as :meth:`caller`.
        """
        known = memo.caller
        if known is None or memo.generation != self._generation or known.expires_at is not None:
            known = self.caller(headers)
            memo.caller, memo.generation = known, self._generation
        return known

    def manager(self, headers: dict[bytes, bytes]) -> Caller:
        """Who sent these headers, if it may manage.

        Raises:
            HttpError: 401 as :meth:`caller`; 403, a valid key that is not the master key.
        """
        caller = self.caller(headers)
        if not caller.may_manage:
            raise HttpError(403, "Management needs the master key.", code="master_key_required")
        return caller

    def usage(self) -> list[dict[str, object]]:
        """For the management API: what is left of each limit."""
        now = self._monotonic()
        return [meter.public(now) for meter in limited(self._meters.values())]

    # -- inside ---------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Make the table of keys anew; what has been used of limits stays used."""
        meters: dict[tuple[str, str], Meter] = {}
        callers: dict[bytes, Caller] = {}
        tenants = {tenant.name: tenant for tenant in self.tenants}
        for tenant in tenants.values():
            self._meter(meters, "tenant", tenant.name, tenant.name, tenant.limit)
            if tenant.key is not None:
                digest = digest_of(tenant.key.encode())
                callers[digest] = _caller_of(tenant, meters["tenant", tenant.name])
        for record in self._records:
            tenant_of_key = tenants.get(record.tenant)
            if record.revoked_at is not None or tenant_of_key is None:
                continue
            self._meter(meters, "key", record.key_id, record.name, record.limit)
            callers[record.digest] = _caller_of_key(
                record,
                tenant_of_key,
                (meters["key", record.key_id], meters["tenant", tenant_of_key.name]),
            )
        if self._master is not None:
            if self._master in callers:
                raise SettingsError(
                    "a tenant's key is the master key.", hint="Give the tenant a key of its own."
                )
            callers[self._master] = _MASTER
        self._meters = meters
        self._generation += 1
        self._by_prefix = {digest[:8]: (digest, who) for digest, who in callers.items()}

    def _meter(
        self,
        meters: dict[tuple[str, str], Meter],
        kind: str,
        name: str,
        shown: str,
        limit: RateLimit,
    ) -> None:
        now = self._monotonic()
        limit = self._replicas.limit(limit, name)
        known = self._meters.get((kind, name))
        if known is None:
            known = Meter(f"{kind} {shown!r}", limit, now)
        else:
            known.change(limit, now)
        meters[kind, name] = known


def _caller_of(tenant: TenantConfig, meter: Meter) -> Caller:
    entitlement = Entitlement(tenant.name, min(tenant.bands))
    return Caller(entitlement, False, ModelAccess(tenant.models), limited([meter]))


def _caller_of_key(record: KeyRecord, tenant: TenantConfig, meters: tuple[Meter, ...]) -> Caller:
    """A key may no more than its tenant."""
    highest = max(min(tenant.bands), min(record.bands, default=Band.CRITICAL))
    access = ModelAccess(record.models, within=ModelAccess(tenant.models))
    return Caller(
        Entitlement(tenant.name, highest), False, access, limited(meters), record.expires_at
    )
