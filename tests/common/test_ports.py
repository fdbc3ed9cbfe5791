"""SagePorts: the table, the environment's say, WSL2, and what happens when a port is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sage_prefect.common import ports
from sage_prefect.common.errors import PortInUseError, SettingsError
from sage_prefect.common.ports import SagePorts, choose_port, is_free, is_wsl2


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def default_port(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SagePorts]:
    """Makes a port the recommended one of the gateway: tests never touch the real defaults."""

    def use(port: int) -> SagePorts:
        monkeypatch.setattr(SagePorts, "recommended", lambda self: port)
        return SagePorts.GATEWAY

    return use


def test_the_table() -> None:
    assert {port.name: port.value for port in SagePorts} == {
        "GATEWAY": 8888,
        "LLM": 8001,
        "LLM_2": 8002,
        "LLM_WSL": 8901,
        "EMBEDDING": 8090,
        "EMBEDDING_2": 8091,
        "BENCH_LLM": 8911,
        "BENCH_EMBEDDING": 8912,
        "BENCH_API": 8913,
        "PREFECT": 4200,
        "DASK_SCHEDULER": 8786,
        "DASK_DASHBOARD": 8787,
    }


def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SagePorts.PREFECT.resolve() == 4200
    monkeypatch.setenv("SAGE_PORT_PREFECT", " 4300 ")
    assert SagePorts.PREFECT.resolve() == 4300
    monkeypatch.setenv("SAGE_PORT_PREFECT", " ")
    assert SagePorts.PREFECT.override() is None


@pytest.mark.parametrize("value", ["x", "0", "-1", "65536", "80.5"])
def test_a_variable_that_is_no_port(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SAGE_PORT_LLM", value)
    with pytest.raises(SettingsError, match=f"SAGE_PORT_LLM='{value}' is not a port"):
        SagePorts.LLM.resolve()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("Linux version 5.15.153.1-microsoft-standard-WSL2 (gcc)", True),
        ("Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)", True),
        ("Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org)", False),
        (None, False),
    ],
)
def test_wsl2_shows_in_the_kernel_version(
    tmp_path: Path, version: str | None, expected: bool
) -> None:
    file = tmp_path / "version"
    if version is not None:
        file.write_text(version)
    assert is_wsl2(file) is expected


def test_under_wsl2_the_llm_moves_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_wsl2", lambda: True)
    assert SagePorts.LLM.recommended() is SagePorts.LLM_WSL
    assert SagePorts.LLM.resolve() == 8901
    assert all(port.recommended() is port for port in SagePorts if port is not SagePorts.LLM)
    monkeypatch.setenv("SAGE_PORT_LLM", "8005")
    assert SagePorts.LLM.resolve() == 8005


def test_is_free_sees_listeners(taken: int, free_port: Callable[[], int]) -> None:
    assert not is_free(taken)
    assert not is_free(taken, "0.0.0.0")
    assert is_free(free_port())


def test_is_free_sees_a_listener_on_all_addresses() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not is_free(server.getsockname()[1], "127.0.0.1")


def test_a_taken_default_gives_way_to_the_next_free_port(
    taken: int, default_port: Callable[[int], SagePorts]
) -> None:
    chosen = choose_port(default_port(taken))
    assert taken < chosen < taken + 200
    assert is_free(chosen)


def test_promised_ports_are_passed_over(
    free_port: Callable[[], int], default_port: Callable[[int], SagePorts]
) -> None:
    port = free_port()
    assert choose_port(default_port(port)) == port
    assert choose_port(default_port(port), avoid=[port]) > port


def test_no_free_port_in_reach(taken: int, default_port: Callable[[int], SagePorts]) -> None:
    with pytest.raises(PortInUseError, match=r"no free port for gateway.*SAGE_PORT_GATEWAY"):
        choose_port(default_port(taken), tries=1)


def test_an_explicit_port_never_gives_way(
    taken: int, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    assert choose_port(SagePorts.LLM, explicit=port) == port
    with pytest.raises(PortInUseError, match=f"port {taken}, chosen for llm, is taken"):
        choose_port(SagePorts.LLM, explicit=taken)
    with pytest.raises(PortInUseError, match="is taken"):
        choose_port(SagePorts.LLM, explicit=port, avoid=[port])
    monkeypatch.setenv("SAGE_PORT_LLM", str(taken))
    with pytest.raises(PortInUseError, match=rf"port {taken} \(SAGE_PORT_LLM\)"):
        choose_port(SagePorts.LLM)
    assert choose_port(SagePorts.LLM, explicit=port) == port


@pytest.mark.parametrize("port", [0, -5, 65536])
def test_an_explicit_port_that_is_none(port: int) -> None:
    with pytest.raises(SettingsError, match="is not a port"):
        choose_port(SagePorts.LLM, explicit=port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_foreign_address_is_not_a_taken_port(
    host: str, explicit: bool, free_port: Callable[[], int]
) -> None:
    with pytest.raises(SettingsError, match="no address of this machine"):
        choose_port(SagePorts.LLM, explicit=free_port() if explicit else None, host=host)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may bind any port")
def test_a_privileged_port_says_so() -> None:
    with pytest.raises(SettingsError, match="only be bound by root"):
        choose_port(SagePorts.LLM, explicit=81)
