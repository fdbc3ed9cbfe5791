"""The local Dask cluster as a process: loopback only, no process left, errors said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.e2e


class Cluster:
    """A cluster process and its files."""

    def __init__(self, folder: Path) -> None:
        self.ready = folder / "ready"
        self.log = folder / "log"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, config: str | None = None, **env: str) -> None:
        command = [sys.executable, "-m", "sage_prefect.orchestration.cluster_process"]
        command += ["--ready-file", str(self.ready), "--folder", str(self.folder / "spill")]
        if config is not None:
            (self.folder / "cluster.yaml").write_text(config)
            command += ["--config", str(self.folder / "cluster.yaml")]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**clean, **env}, stdout=log, stderr=log)

    def wait_ready(self) -> str:
        until(lambda: self.ready.exists() or self.ended(), "the ready file")
        assert self.ready.exists(), self.log.read_text()
        return self.ready.read_text()

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def family(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


def until(look: Callable[[], Any], what: str, limit_s: float = 120.0) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {limit_s:g} s for {what}")


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    if made.process is not None and not made.ended():
        for process in made.family():
            process.kill()
        made.process.wait()


ONE = "pools: {solo: {resources: {cpu: 1}}}"
# Nothing is sent to it before a task runs.
SERVER = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}


def test_listens_on_loopback_and_leaves_no_process(cluster):
    cluster.start(ONE, **SERVER)
    address = cluster.wait_ready()
    assert address.startswith("tcp://127.0.0.1:")
    family = cluster.family()
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}

    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 0
    assert not cluster.ready.exists()
    assert not psutil.wait_procs(family[1:], timeout=10)[1]


def test_killed_cluster_takes_its_workers_along(cluster):
    cluster.start(ONE, **SERVER)
    cluster.wait_ready()
    family = cluster.family()
    cluster.process.kill()
    cluster.process.wait()
    assert not psutil.wait_procs(family[1:], timeout=30)[1]


def test_ends_at_once_when_told_so_during_its_start(cluster):
    cluster.start(ONE, **SERVER)
    until(lambda: len(cluster.family()) > 1, "a worker process")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 0


@pytest.mark.parametrize(
    ("config", "env", "words"),
    [
        ("pools: {solo: {count: many}}", SERVER, "pools.solo.count is 'many'"),
        (ONE, {}, "need PREFECT_API_URL"),
    ],
)
def test_what_is_wrong_is_said(cluster, config, env, words):
    cluster.start(config, **env)
    assert cluster.process.wait(60) == 1
    assert words in cluster.log.read_text()


def test_worker_that_is_killed_again_while_it_starts_comes_back(cluster):
    from distributed import Client

    def worker_processes() -> list[psutil.Process]:
        return [child for child in cluster.family()[1:] if "spawn_main" in " ".join(cmd(child))]

    cluster.start(ONE, **SERVER)
    address = cluster.wait_ready()
    first = worker_processes()
    for process in first:
        process.kill()
    second = until(
        lambda: [child for child in worker_processes() if child not in first], "a second worker"
    )
    for process in second:
        process.kill()
    with Client(address, set_as_default=False) as client:

        def back() -> bool:
            return bool(client.scheduler_info()["workers"]) and not first[0].is_running()

        until(back, "a third worker")
        assert client.submit(os.getpid).result() not in [p.pid for p in (*first, *second)]
    assert not cluster.ended()


def cmd(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
