"""The SQLite store of keys and tenants."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sage_gateway.key_records import KeyRecord, new_key
from sage_gateway.key_store import RETAINED_S, SqliteKeyStore, StoreContent, StoreUnavailable
from sage_gateway.rate_limits import RateLimit
from sage_gateway.tenants import TenantConfig
from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane.events import Band

TENANT = TenantConfig(
    "search", None, 2.0, (Band.STANDARD, Band.BATCH), 5, None, ("a", "b/*"), RateLimit(60, 9000, 4)
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.sqlite"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteKeyStore]:
    with closing(SqliteKeyStore(file)) as opened:
        yield opened


def record(key: str = "", **fields: object) -> KeyRecord:
    said = {"name": "ci", "tenant": "search", "created_at": 1000.0, **fields}
    return KeyRecord.make(key or new_key(), **said)


def test_reading_makes_no_file(store: SqliteKeyStore, file: Path) -> None:
    assert store.version() == 0
    assert store.load() == StoreContent()
    assert not file.exists()


def test_what_was_put_is_there_for_the_next_process(store: SqliteKeyStore, file: Path) -> None:
    limited = record(
        bands=(Band.BATCH,), models=("a",), limit=RateLimit(5), expires_at=9e9, revoked_at=None
    )
    plain = record(created_at=2000.0)
    store.put_tenant(TENANT)
    store.put_tenant(TenantConfig("other"))
    store.put_key(limited)
    store.put_key(plain)
    store.remove_tenant("other")
    with closing(SqliteKeyStore(file)) as other:
        assert other.load() == StoreContent((TENANT,), (limited, plain))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_key_is_in_the_file(store: SqliteKeyStore, file: Path) -> None:
    key = new_key()
    store.put_key(record(key))
    assert key.encode() not in file.read_bytes()
    assert key not in repr(store.load())


def test_changes_of_others_are_seen_and_own_ones_are_not(store: SqliteKeyStore, file: Path) -> None:
    store.put_tenant(TENANT)
    version = store.version()
    store.put_key(record())
    assert store.version() == version
    with closing(SqliteKeyStore(file)) as other:
        other.put_key(record())
    assert store.version() != version
    assert len(store.load().keys) == 2


def test_a_locked_database_is_said_to_be_unavailable(
    store: SqliteKeyStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_gateway.key_store._BUSY_S", 0.01)
    store.put_tenant(TENANT)
    with closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=r"keys.sqlite.*locked"):
            store.put_key(record())
        locker.execute("ROLLBACK")
    assert store.load().keys == ()
    store.put_key(record())


def test_a_full_disk_changes_nothing(store: SqliteKeyStore) -> None:
    kept = record()
    store.put_key(kept)
    store._run("PRAGMA max_page_count = 1")  # SQLite answers as on a full disk
    tenants = [TenantConfig(f"t-{number}-{'x' * 100}") for number in range(200)]

    def fill() -> None:
        for tenant in tenants:
            store.put_tenant(tenant)

    with pytest.raises(StoreUnavailable, match="full"):
        fill()
    assert store.load().keys == (kept,)


def test_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    place = tmp_path / "taken" / "keys.sqlite"
    with closing(SqliteKeyStore(place)) as store, pytest.raises(StoreUnavailable):
        store.put_tenant(TENANT)


def test_other_files_and_newer_formats_are_refused(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"this is no database, whatever its name says" * 100)
    with closing(SqliteKeyStore(file)) as store, pytest.raises(CorruptFileError, match="backup"):
        store.load()
    file.unlink()
    with closing(sqlite3.connect(file)) as newer:
        newer.execute("PRAGMA user_version = 99")
    with closing(SqliteKeyStore(file)) as store, pytest.raises(CorruptFileError, match="format 99"):
        store.load()


def test_rows_that_make_no_sense_are_refused(store: SqliteKeyStore, file: Path) -> None:
    store.put_key(record())
    store._run("UPDATE keys SET rights = '{}'")
    with closing(SqliteKeyStore(file)) as other, pytest.raises(CorruptFileError):
        other.load()


def test_old_keys_that_open_nothing_are_forgotten(store: SqliteKeyStore, file: Path) -> None:
    now = time.time()
    fresh = record(revoked_at=now - RETAINED_S / 2)
    for old in (record(revoked_at=now - 2 * RETAINED_S), record(expires_at=now - 2 * RETAINED_S)):
        store.put_key(old)
    store.put_key(fresh)
    with closing(SqliteKeyStore(file)) as other:
        other.put_tenant(TENANT)
        assert other.load().keys == (fresh,)
