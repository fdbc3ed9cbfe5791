"""The registry file and the socket's path."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform import registry
from sage_prefect.platform.processes import ProcessId
from sage_prefect.platform.registry import Record
from sage_prefect.platform.service import ServiceSpec, ServiceState

RECORD = Record(
    spec=ServiceSpec(name="web", command=("true",), env={"SECRET": "x"}),
    state=ServiceState(name="web", kind="service", status="ready", pid=7, ports={"http": 80}),
    process=(7, 1234),
)


def test_round_trip(home: Path) -> None:
    assert registry.read_registry().services == {}
    registry.write_registry({"web": RECORD}, ProcessId(1, 2))
    again = registry.read_registry()
    assert again.services == {"web": RECORD}
    assert again.leaders() == [ProcessId(7, 1234)]
    assert registry.registry_file().stat().st_mode & 0o777 == 0o600


def test_processes_of_another_boot_do_not_count(home: Path) -> None:
    registry.write_registry({"web": RECORD}, ProcessId(1, 2))
    content = orjson.loads(registry.registry_file().read_bytes())
    content["boot_id"] = "an earlier one"
    registry.registry_file().write_bytes(orjson.dumps(content))
    assert registry.read_registry().leaders() == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"services": {"web": {"spec": 1}}}'])
def test_damaged(home: Path, content: str) -> None:
    registry.require_state_dir()
    registry.registry_file().write_text(content)
    with pytest.raises(ServiceError, match="is damaged"):
        registry.read_registry()


def test_unwritable(home: Path) -> None:
    home.mkdir()
    (home / "state").write_text("a file")
    with pytest.raises(ServiceError, match="cannot write the service registry"):
        registry.write_registry({}, ProcessId(1, 2))


def test_long_state_directory_gets_a_short_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("SAGE_HOME", "/tmp/" + "long/" * 40)
    path = registry.socket_path()
    assert path.parent == tmp_path / f"sage-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("SAGE_HOME", "/tmp/" + "long/" * 41)
    assert registry.socket_path() != path


def test_socket_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"sage-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ServiceError, match="not a private directory"):
        registry.runtime_dir()
