"""Fixtures of the platform tests: a home of their own, and a supervisor that leaves nothing."""

from __future__ import annotations

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


@pytest.fixture
def client(home: Path) -> Iterator[SupervisorClient]:
    """A client of a supervisor of this test alone; afterwards no process may be left."""
    yield SupervisorClient.connect()
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
