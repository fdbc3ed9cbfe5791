"""Binding and start-up."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sage_gateway.__main__ import main
from sage_gateway.server import bind, serve
from sage_prefect.common.errors import PortInUseError, ServiceError, SettingsError


def test_explicit_port_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)):
            bind("127.0.0.1", port)


def test_default_port_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        assert first.getsockname()[1] != second.getsockname()[1]
        assert second.getsockname()[1] > 8887


def test_addresses_that_cannot_be_bound() -> None:
    for host in ("no-such-host.invalid", "203.0.113.7"):
        with pytest.raises(ServiceError):
            bind(host, 0)


def test_refuses_to_start_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no master key"):
        serve(None, port=0)


def test_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("sage_settings: {queue: {max_request: 1}}")
    assert main(["--config", str(file), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "max_request" in said
    assert "hint: Did you mean 'max_requests'?" in said
    assert main(["--policy", "fifa", "--port", "0"]) == 1
    assert "Did you mean 'fifo'?" in capsys.readouterr().err
