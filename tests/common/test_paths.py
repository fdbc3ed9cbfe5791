"""Base directories, and files that are never half written."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sage_prefect.common import paths
from sage_prefect.common.paths import atomic_write

FOLDERS = {
    "config": ("XDG_CONFIG_HOME", ".config"),
    "data": ("XDG_DATA_HOME", ".local/share"),
    "state": ("XDG_STATE_HOME", ".local/state"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_xdg_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, fallback = FOLDERS[name]
    folder = getattr(paths, f"{name}_dir")
    monkeypatch.delenv("SAGE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv(variable, "/elsewhere")
    assert folder() == Path("/elsewhere/sage")
    for ignored in ("", "relative/path"):
        monkeypatch.setenv(variable, ignored)
        assert folder() == Path("/home/someone", fallback, "sage")
    monkeypatch.delenv(variable)
    assert folder() == Path("/home/someone", fallback, "sage")


def test_sage_home_holds_all_four(
    sage_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    for name in FOLDERS:
        assert getattr(paths, f"{name}_dir")() == sage_home / name
    assert paths.log_dir() == sage_home / "state" / "logs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGE_HOME", "here")
    assert paths.data_dir() == tmp_path / "here" / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAGE_HOME", "~/there")
    assert paths.data_dir() == tmp_path / "there" / "data"


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    atomic_write(file, b"one")
    atomic_write(file, b"two", mode=0o600)
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
