"""Keys and tenants that are made, changed and revoked while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from sage_gateway.auth import KeyRing
from sage_gateway.key_records import KeyRecord, new_key
from sage_gateway.key_store import KeyStore, StoreContent, StoreUnavailable
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import SettingsError, UnknownNameError

log = logging.getLogger(__name__)

T = TypeVar("T")


class KeyDirectory:
    """Keeps the ring and the store alike.

    A key opens only once it is stored, so that none is lost by a restart. What takes rights away
    (a revocation) is in force at once, whatever the store says, and is stored again and again
    until it is.

    Args:
        ring: hears of every change at once.
        store: its methods run in a thread of their own.
        refresh_s: how often changes of others are looked for.
        on_tenants: hears that tenants have changed.

    Raises:
        CorruptFileError: the store makes no sense.
    """

    def __init__(
        self,
        ring: KeyRing,
        store: KeyStore,
        refresh_s: float,
        on_tenants: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._store = store
        self._refresh_s = refresh_s
        self._on_tenants = on_tenants
        self._clock = clock
        self._content = StoreContent()
        self._unstored: dict[str, KeyRecord] = {}
        """Revocations that the store has not taken yet."""
        self._version = -1
        self._worker: ThreadPoolExecutor | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._complained = ""
        try:
            self._version = store.version()
            self._take(store.load())
        except StoreUnavailable as error:
            self._version = -1
            self._complain(error)

    def start(self) -> None:
        """Begin to look for changes."""
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self._store.close()

    # -- keys -----------------------------------------------------------------------------

    @property
    def keys(self) -> tuple[KeyRecord, ...]:
        """All that are remembered, oldest first."""
        return self._content.keys

    @property
    def tenants(self) -> tuple[TenantConfig, ...]:
        """The configuration's, then those made at run time."""
        return self._ring.tenants

    def is_configured(self, tenant: str) -> bool:
        """Whether a tenant stands in the configuration: it cannot be changed here."""
        return tenant in self._ring.configured

    async def create_key(self, *, tenant: str, **fields: Any) -> tuple[KeyRecord, str]:
        """A new key: its record, and the key itself, which nobody is ever told again.

        Raises:
            UnknownNameError: there is no such tenant.
            StoreUnavailable: it could not be stored; there is no new key.
        """
        async with self._changing:
            self._tenant(tenant)
            key = new_key()
            record = KeyRecord.make(key, tenant=tenant, created_at=self._clock(), **fields)
            await self._in_thread(self._store.put_key, record)
            self._take(replace(self._content, keys=(*self._content.keys, record)))
            return record, key

    async def revoke_key(self, key_id: str) -> tuple[KeyRecord, bool]:
        """It opens nothing from now on: its record, and whether that is stored.

        Raises:
            UnknownNameError: there is no such key.
        """
        known = {record.key_id: record for record in self._content.keys}
        if key_id not in known:
            raise UnknownNameError("key", key_id, known)
        record = known[key_id]
        if record.revoked_at is None:
            # Before anything is awaited: the next request is refused.
            record = replace(record, revoked_at=self._clock())
            self._unstored[key_id] = record
            self._take(self._content)
        async with self._changing:
            await self._store_revocations()
        return record, key_id not in self._unstored

    # -- tenants --------------------------------------------------------------------------

    async def put_tenant(self, tenant: TenantConfig) -> bool:
        """Add a tenant, or change it; whether it is new.

        Raises:
            SettingsError: it stands in the configuration.
            StoreUnavailable: it could not be stored; nothing has changed.
        """
        async with self._changing:
            self._refuse_configured(tenant.name)
            others = tuple(t for t in self._content.tenants if t.name != tenant.name)
            is_new = len(others) == len(self._content.tenants)
            await self._in_thread(self._store.put_tenant, tenant)
            self._take(replace(self._content, tenants=(*others, tenant)))
            return is_new

    async def remove_tenant(self, name: str) -> list[KeyRecord]:
        """Forget a tenant; its keys, which are told, are revoked.

        Raises:
            SettingsError: it stands in the configuration.
            UnknownNameError: there is none.
            StoreUnavailable: it could not be stored; the tenant is there, its keys are revoked.
        """
        self._refuse_configured(name)
        self._tenant(name)
        revoked = [
            (await self.revoke_key(record.key_id))[0]
            for record in self._content.keys
            if record.tenant == name and record.revoked_at is None
        ]
        async with self._changing:
            await self._in_thread(self._store.remove_tenant, name)
            others = tuple(t for t in self._content.tenants if t.name != name)
            self._take(replace(self._content, tenants=others))
        return revoked

    # -- inside ---------------------------------------------------------------------------

    def _tenant(self, name: str) -> None:
        known = [tenant.name for tenant in self.tenants]
        if name not in known:
            raise UnknownNameError("tenant", name, known)

    def _refuse_configured(self, name: str) -> None:
        if self.is_configured(name):
            raise SettingsError(
                f"tenant {name!r} stands in the configuration file.",
                hint="Change it there and reload the configuration.",
            )

    def _take(self, content: StoreContent) -> None:
        keys = tuple(self._unstored.get(record.key_id, record) for record in content.keys)
        before = self._content.tenants
        self._content = StoreContent(content.tenants, keys)
        self._ring.take(content.tenants, keys)
        if content.tenants != before:
            self._on_tenants()

    async def _in_thread(self, work: Callable[..., T], *what: Any) -> T:
        """Run in the store's thread."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="key-store")
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *what)

    async def _store_revocations(self) -> None:
        for key_id, record in list(self._unstored.items()):
            try:
                await self._in_thread(self._store.put_key, record)
            except StoreUnavailable as error:
                self._complain(error)
                return
            # What the content holds has been the revoked record since the revocation.
            del self._unstored[key_id]

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                async with self._changing:
                    await self._store_revocations()
                    changed = await self._in_thread(self._changed)
                    if changed is not None:
                        self._version, content = changed
                        self._take(content)
                if not self._unstored:
                    self._complained = ""
            except StoreUnavailable as error:
                self._complain(error)
            except Exception:
                # A store that has gone bad while we serve: what is in memory goes on to hold.
                log.exception("the store of keys could not be read; the keys in memory still hold")

    def _changed(self) -> tuple[int, StoreContent] | None:
        """In the store's thread: what is there now, if somebody else has changed it."""
        version = self._store.version()
        return None if version == self._version else (version, self._store.load())

    def _complain(self, error: StoreUnavailable) -> None:
        if str(error) != self._complained:
            self._complained = str(error)
            log.error(str(error))
