"""One real local stack per session: Prefect server, Dask cluster, engines, gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sage_prefect.platform.engines import vllm_env

SAGE = (sys.executable, "-m", "sage_prefect.cli.main")


@dataclass(frozen=True)
class Stack:
    """A state directory of its own, and how to run commands against it."""

    home: Path
    env: dict[str, str]

    def sage(
        self, *args: str, timeout: float = 600, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a ``sage`` command to its end."""
        done = subprocess.run(
            [*SAGE, *args],
            env=self.env,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"sage {' '.join(args)} ended with {done.returncode}:\n{shown(done)}")
        return done

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """Start a ``sage`` command; its standard output can be read line by line."""
        env = {**self.env, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [*SAGE, *args], env=env, cwd=self.home, stdout=subprocess.PIPE, text=True
        )

    def services(self) -> dict[str, dict[str, Any]]:
        """Name -> what ``sage status --json`` says of it."""
        listed = json.loads(self.sage("status", "--json", check=False).stdout)["services"]
        return {service["name"]: service for service in listed}

    def endpoint(self, name: str) -> str:
        """The published URL of ``gateway``, ``prefect``, ``dask``..."""
        return str(json.loads((self.home / "state" / "endpoints.json").read_text())[name])

    @property
    def key(self) -> str:
        """The gateway's generated master key."""
        return (self.home / "config" / "master.key").read_text().strip()

    def processes(self) -> list[psutil.Process]:
        """All live processes that belong to this stack (by the marker in their environment)."""
        found = []
        marker = str(self.home / "state")
        for process in psutil.process_iter():
            try:
                if process.environ().get("SAGE_SUPERVISOR") == marker:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def down(self) -> None:
        """Stop everything, and make sure of it."""
        self.sage("down", timeout=120)
        left = self.processes()
        assert not left, f"left behind by sage down: {left}"


def new_stack(home: Path) -> Stack:
    """A stack that has not been started, with an environment free of the caller's SAGE settings."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SAGE_", "PREFECT_", "OPENAI_", "DASK_"))
    }
    # The commands run elsewhere: vLLM's environment of this checkout must be named to them.
    vllm = vllm_env.find()
    if vllm is not None:
        env["SAGE_VLLM_PYTHON"] = str(vllm.python)
    env |= {"SAGE_HOME": str(home), "COLUMNS": "160", "NO_COLOR": "1"}
    return Stack(home, env)


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """Both streams of a finished command."""
    return f"{done.stdout}\n--- stderr ---\n{done.stderr}"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The shared stack of this session, started once."""
    made = new_stack(tmp_path_factory.mktemp("sage"))
    try:
        made.sage("up", "--worker", timeout=300)
        yield made
    finally:
        made.down()


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of this test's own, not started."""
    made = new_stack(tmp_path / "home")
    made.home.mkdir()
    try:
        yield made
    finally:
        made.down()
