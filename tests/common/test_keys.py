"""The master key: made once, readable by its owner alone, whole at any moment."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from sage_prefect.common.errors import SettingsError
from sage_prefect.common.keys import ensure_master_key, key_file, read_master_key


def test_a_key_is_made_once(sage_home: Path) -> None:
    assert read_master_key() is None
    key = ensure_master_key()
    assert key.startswith("sk-sage-")
    assert len(key) >= 8 + 43  # 256 bits in base64
    assert read_master_key() == ensure_master_key() == key
    assert key_file() == sage_home / "config" / "master.key"
    assert list(key_file().parent.iterdir()) == [key_file()]


def test_only_the_owner_can_read_it() -> None:
    old = os.umask(0)
    try:
        ensure_master_key()
    finally:
        os.umask(old)
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file().parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_key_that_others_can_read_is_refused(mode: int) -> None:
    ensure_master_key()
    key_file().chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 600"):
        read_master_key()
    with pytest.raises(SettingsError, match="others can read it"):
        ensure_master_key()


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="is empty"):
        read_master_key(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe")
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="cannot read key file"):
        read_master_key(file)
    with pytest.raises(SettingsError, match="cannot read key file"):
        read_master_key(tmp_path)  # a folder


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_MASTER_KEY", " sk-mine\n")
    assert ensure_master_key() == "sk-mine"
    assert not key_file().exists()
    monkeypatch.setenv("SAGE_MASTER_KEY", " ")
    assert read_master_key() is None


def test_all_who_start_together_get_the_same_key(tmp_path: Path) -> None:
    together = 8
    for attempt in range(20):
        file, barrier = tmp_path / f"{attempt}.key", Barrier(together)

        def start(_: int, file: Path = file, barrier: Barrier = barrier) -> str:
            barrier.wait()
            return ensure_master_key(file)

        with ThreadPoolExecutor(together) as pool:
            keys = set(pool.map(start, range(together)))
        assert keys == {read_master_key(file)}
    assert len(list(tmp_path.iterdir())) == 20
