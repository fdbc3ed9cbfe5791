"""Where keys and tenants outlive the process: the interface, and SQLite behind it.

Serving never touches it: everything is read into memory, and read again when it has changed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sage_gateway.key_records import KeyRecord
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import CorruptFileError, SageError

FORMAT = 1
_BUSY_S = 2.0
RETAINED_S = 90 * 86_400.0
"""Keys that were revoked or have expired are listed for so long, then forgotten."""

_TABLES = """
CREATE TABLE IF NOT EXISTS tenants (name TEXT PRIMARY KEY, said TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS keys (
  key_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  tenant TEXT NOT NULL,
  digest BLOB NOT NULL UNIQUE,
  hint TEXT NOT NULL,
  created_at REAL NOT NULL,
  expires_at REAL,
  revoked_at REAL,
  rights TEXT NOT NULL
);
"""
_COLUMNS = ("key_id", "name", "tenant", "digest", "hint", "created_at", "expires_at", "revoked_at")


class StoreUnavailable(SageError):  # noqa: N818 - a state of the world
    """The store cannot be read or written now: locked, full, or not there."""


@dataclass(frozen=True, slots=True)
class StoreContent:
    """All of it."""

    tenants: tuple[TenantConfig, ...] = ()
    keys: tuple[KeyRecord, ...] = ()


class KeyStore(Protocol):
    """What the gateway needs of a store. Every method may block and is called from one thread at a
    time; each raises :class:`StoreUnavailable` when it could not do its work, and has then
    changed nothing."""

    def version(self) -> int:
        """A number that differs from the last one when somebody else has changed the store."""

    def load(self) -> StoreContent:
        """Everything."""

    def put_key(self, record: KeyRecord) -> None:
        """Add a key, or replace the one of its id."""

    def put_tenant(self, tenant: TenantConfig) -> None:
        """Add a tenant, or replace the one of its name."""

    def remove_tenant(self, name: str) -> None:
        """Forget a tenant."""

    def close(self) -> None:
        """Let go of what it holds."""


class SqliteKeyStore:
    """A store in one file that only its owner can read (mode 0600).

    A rollback journal, not WAL: writes are rare, and reading then needs no room on the disk.

    Raises:
        CorruptFileError: the file is no such database, or of a newer format.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._connection: sqlite3.Connection | None = None
        self._is_set_up = False

    def version(self) -> int:
        """0 while there is no file; SQLite's ``data_version`` else: only others' changes count."""
        if self._connection is None and not self.file.exists():
            return 0
        return int(str(self._run("PRAGMA data_version")[0][0]))

    def load(self) -> StoreContent:
        if self._connection is None and not self.file.exists():
            return StoreContent()
        if not self._run("SELECT 1 FROM sqlite_master WHERE name = 'keys'"):
            return StoreContent()
        said = self._run("SELECT said FROM tenants ORDER BY name")
        rows = self._run(f"SELECT {', '.join(_COLUMNS)}, rights FROM keys ORDER BY created_at")
        try:
            tenants = [TenantConfig.of(json.loads(str(text))) for (text,) in said]
            records = [
                KeyRecord.of(dict(zip(_COLUMNS, row[:-1], strict=True)), json.loads(str(row[-1])))
                for row in rows
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(f"a row of it makes no sense ({error!r})") from error
        return StoreContent(tuple(tenants), tuple(records))

    def put_key(self, record: KeyRecord) -> None:
        values = (*(getattr(record, column) for column in _COLUMNS), json.dumps(record.rights()))
        marks = ", ".join("?" * len(values))
        self._write(
            f"INSERT OR REPLACE INTO keys ({', '.join(_COLUMNS)}, rights) VALUES ({marks})", values
        )

    def put_tenant(self, tenant: TenantConfig) -> None:
        self._write(
            "INSERT OR REPLACE INTO tenants (name, said) VALUES (?, ?)",
            (tenant.name, json.dumps(tenant.public())),
        )

    def remove_tenant(self, name: str) -> None:
        self._write("DELETE FROM tenants WHERE name = ?", (name,))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- inside ---------------------------------------------------------------------------

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        if not self._is_set_up:
            self._set_up()
        self._run(statement, values)

    def _set_up(self) -> None:
        connection = self._connect()
        try:
            with connection:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                forgotten = time.time() - RETAINED_S
                connection.execute(
                    "DELETE FROM keys WHERE coalesce(revoked_at, expires_at) < ?", (forgotten,)
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._is_set_up = True

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        connection = self._connect()
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.file, timeout=_BUSY_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error
        try:
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as error:
            connection.close()
            raise self._failed(error) from error
        if found > FORMAT:
            connection.close()
            raise self._corrupt(f"it has format {found}, this version reads up to {FORMAT}")
        self._connection = connection
        return connection

    def _failed(self, error: Exception) -> SageError:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError
        ):
            return self._corrupt(str(error))
        reason = getattr(error, "strerror", None) or str(error)
        return StoreUnavailable(
            f"the store of keys {str(self.file)!r} cannot be used now: {reason}.",
            hint="Is its disk full or read-only, or does another process hold it locked?",
        )

    def _corrupt(self, why: str) -> CorruptFileError:
        return CorruptFileError(
            f"the store of keys {str(self.file)!r} cannot be read: {why}.",
            hint="Put a backup in its place, or move it away: its keys then open nothing.",
        )
