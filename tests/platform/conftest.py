"""Fixtures of the platform tests: a home of their own, and a supervisor that leaves nothing."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sage_prefect.common.paths import state_dir
from sage_prefect.platform.processes import end_strays, members
from sage_prefect.platform.service import PortClaim, Probe, RestartPolicy, ServiceSpec
from sage_prefect.platform.supervisor_client import SupervisorClient, SupervisorNotRunning

WEB = (
    sys.executable,
    "-m",
    "http.server",
    "{port}",
    "--bind",
    "127.0.0.1",
    "--directory",
    "/proc/sys",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SAGE_HOME."""
    monkeypatch.setenv("SAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def shared_supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A supervisor for the tests of a module that leave it alive; yields its SAGE_HOME."""
    home = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGE_HOME", str(home))
        SupervisorClient.connect()
    yield home
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGE_HOME", str(home))
        _shut_down()


@pytest.fixture
def client(shared_supervisor: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SupervisorClient]:
    """A client of the module's supervisor; afterwards no process of the test may be left."""
    monkeypatch.setenv("SAGE_HOME", str(shared_supervisor))
    client = SupervisorClient.connect()
    yield client
    client.stop(*(state.name for state in client.list()))
    assert members(str(state_dir())) == []


@pytest.fixture
def own_client(home: Path) -> Iterator[SupervisorClient]:
    """A client of a supervisor of this test alone, which may end it as it likes."""
    yield SupervisorClient.connect()
    _shut_down()


def _shut_down() -> None:
    try:
        SupervisorClient.connect(start=False).shutdown()
    except SupervisorNotRunning:
        end_strays(str(state_dir()))
    assert members(str(state_dir())) == []


@pytest.fixture
def web() -> Callable[..., ServiceSpec]:
    """Makes specs of a small real HTTP server."""

    def make(name: str = "web", **changes: object) -> ServiceSpec:
        fields: dict[str, object] = {
            "name": name,
            "command": WEB,
            "ports": (PortClaim(),),
            "ready": Probe(kind="http", target="http://127.0.0.1:{port}/"),
            "live_period_s": 0.1,
            "start_timeout_s": 30.0,
            "restart": RestartPolicy(first_delay_s=0.05),
        }
        return ServiceSpec.model_validate({**fields, **changes})

    return make


def eventually(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until ``condition()`` is true; fail after the time limit."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    """:func:`eventually`, for test modules (there is no package to import it from)."""
    return eventually


@pytest.fixture
def unused_port() -> int:
    """A port where nobody listens (nor is likely to within this test)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
