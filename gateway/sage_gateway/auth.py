"""Who is calling: keys are compared by their SHA-256 in constant time and never kept in clear."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from sage_gateway.config import TenantConfig
from sage_gateway.errors import HttpError
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.request_classifier import Entitlement

_BEARER = b"bearer "
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="sage"'),)


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key."""

    entitlement: Entitlement
    may_manage: bool


class KeyRing:
    """All keys of this gateway.

    Args:
        master_key: opens everything; None only together with ``open_to_all``.
        tenants: their keys open the inference routes.
        open_to_all: no key is asked for (loopback only; the caller has checked that).
    """

    def __init__(
        self,
        master_key: str | None,
        tenants: Iterable[TenantConfig] = (),
        *,
        open_to_all: bool = False,
    ) -> None:
        self._callers: dict[bytes, Caller] = {}
        for tenant in tenants:
            entitlement = Entitlement(tenant.name, min(tenant.bands))
            self._callers[_digest(tenant.key.encode())] = Caller(entitlement, False)
        if master_key is not None:
            digest = _digest(master_key.encode())
            if digest in self._callers:
                raise SettingsError(
                    "a tenant's key is the master key.", hint="Give the tenant a key of its own."
                )
            self._callers[digest] = Caller(Entitlement("default", Band.CRITICAL), True)
        # Found by the hash's first bytes, decided by the whole hash.
        self._by_prefix = {digest[:8]: (digest, who) for digest, who in self._callers.items()}
        self._anyone = Caller(Entitlement("default", Band.CRITICAL), True) if open_to_all else None

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Who sent these headers.

        Raises:
            HttpError: 401, no key or a wrong one.
        """
        if self._anyone is not None:
            return self._anyone
        value = headers.get(b"authorization")
        if value is None or value[:7].lower() != _BEARER:
            raise HttpError(
                401,
                "No API key was given. Send the header `Authorization: Bearer KEY`.",
                code="missing_api_key",
                headers=_CHALLENGE,
            )
        digest = _digest(value[7:].strip())
        bucket = self._by_prefix.get(digest[:8])
        if bucket is not None and hmac.compare_digest(bucket[0], digest):
            return bucket[1]
        raise HttpError(
            401, "The API key is not valid.", code="invalid_api_key", headers=_CHALLENGE
        )

    def manager(self, headers: dict[bytes, bytes]) -> Caller:
        """Who sent these headers, if it may manage.

        Raises:
            HttpError: 401 as :meth:`caller`; 403, a valid key that is not the master key.
        """
        caller = self.caller(headers)
        if not caller.may_manage:
            raise HttpError(403, "Management needs the master key.", code="master_key_required")
        return caller


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
