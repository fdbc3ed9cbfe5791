"""One real local stack per session: Prefect server, Dask cluster, engines, gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sage_prefect.platform.engines import vllm_env

# Of the stack without a supervisor (the fixture ``serving``).
KEY = "sk-e2e-master"
CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"
START_S = 180

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


def start(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(10)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()}"
        assert time.monotonic() < deadline, f"{url} not ready: {log.read_text()}"
        time.sleep(0.1)


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the gateway prints when it is ready."""
    deadline = time.monotonic() + START_S
    while True:
        found = re.search(r"listening on (http://\S+)", log.read_text())
        if found:
            return found.group(1)
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Serving:
    url: str
    llm_url: str
    log: Path

    def busy_slots(self) -> int:
        """How many requests llama.cpp works on at this moment."""
        with urllib.request.urlopen(f"{self.llm_url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(r"^llamacpp:requests_processing (\d+)", text, re.MULTILINE)
        assert found, text
        return int(found.group(1))

    def until_slots(self, busy: bool, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while bool(self.busy_slots()) is not busy:
            assert time.monotonic() < deadline, f"slots did not become busy={busy}"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """llama.cpp, the embedding server and the gateway before them, as processes."""
    from sage_prefect.platform.models import resolve

    folder = tmp_path_factory.mktemp("gateway-e2e")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    env |= {"SAGE_HOME": str(folder / "home"), "SAGE_MASTER_KEY": KEY}
    llm_port, embedding_port = free_port(), free_port()
    engines = "sage_prefect.platform"
    started: list[subprocess.Popen[bytes]] = []
    try:
        llm = start(
            [
                *(sys.executable, "-m", f"{engines}.engines.llamacpp_server"),
                *("--model", str(resolve(CHAT).path), "--alias", CHAT, "--slots", "2"),
                *("--port", str(llm_port)),
            ],
            folder / "llm.log",
            env,
        )
        started.append(llm)
        embedding = start(
            [
                *(sys.executable, "-m", f"{engines}.embedding_server", "--model", EMBEDDING),
                *("--port", str(embedding_port), "--device", "cpu"),
            ],
            folder / "embedding.log",
            env,
        )
        started.append(embedding)
        config = folder / "gateway.yaml"
        config.write_text(
            json.dumps(
                {
                    "model_list": [
                        _model("assistant", CHAT, llm_port, "chat", "llamacpp"),
                        _model(CHAT, CHAT, llm_port, "chat", "llamacpp"),
                        _model(
                            EMBEDDING,
                            EMBEDDING,
                            embedding_port,
                            "embedding",
                            "sentence-transformers",
                        ),
                    ],
                    "general_settings": {"master_key": "os.environ/SAGE_MASTER_KEY"},
                }
            )
        )
        wait_for(f"http://127.0.0.1:{llm_port}/health", llm, folder / "llm.log")
        wait_for(f"http://127.0.0.1:{embedding_port}/health", embedding, folder / "embedding.log")
        log = folder / "gateway.log"
        gateway = start(
            [sys.executable, "-m", "sage_gateway", "--config", str(config), "--port", "0"], log, env
        )
        started.append(gateway)
        url = address_of(gateway, log)
        yield Serving(url, f"http://127.0.0.1:{llm_port}", log)
        assert stop(gateway) == 0, log.read_text()
    finally:
        for process in started:
            if process.poll() is None:
                stop(process)


def _model(name: str, upstream: str, port: int, mode: str, engine: str) -> dict[str, object]:
    return {
        "model_name": name,
        "litellm_params": {
            "model": f"openai/{upstream}",
            "api_base": f"http://127.0.0.1:{port}/v1",
        },
        "model_info": {"mode": mode, "engine": engine, "max_concurrency": 2},
    }


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a server of ours on a port of the kernel's choice; gives its address when ready."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(module: str, *arguments: str) -> str:
        log = tmp_path / f"engine{len(started)}.log"
        command = [sys.executable, "-m", f"sage_prefect.platform.{module}", "--port", "0"]
        process = start([*command, *arguments], log, dict(os.environ))
        started.append(process)
        address = address_of(process, log).rstrip(",")
        wait_for(f"{address}/health", process, log)
        return address

    yield begin
    for process in started:
        stop(process)
