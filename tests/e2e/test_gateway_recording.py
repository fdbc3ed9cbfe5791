"""A real gateway between faulty engines and hundreds of clients: its log replays to the letter."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import httpx
import pytest

from sage_prefect.control_plane.events import (
    Arrival,
    Cancel,
    Done,
    EngineReport,
    Failed,
    FirstToken,
    PolicyChanged,
)
from sage_prefect.platform.event_log import read_log

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-recording"
LEAVING = "a client that leaves in the middle"
SECRET = "words that belong into no log"
REQUESTS = 300


class FaultyEngine(BaseHTTPRequestHandler):
    """Answers most calls; the prompt says by its number how."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fault = self.server.rng.random()  # type: ignore[attr-defined]
        if body.get("user") == LEAVING:
            self._stream(broken=True, until_left=True)
        elif fault < 0.05:
            self._whole(503, {"error": {"message": "busy"}})
        elif fault < 0.10:
            self.close_connection = True
            self.connection.close()
        elif body.get("stream"):
            self._stream(broken=fault < 0.15)
        else:
            usage = {"prompt_tokens": 9, "completion_tokens": 4}
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}}
            self._whole(200, {"choices": [choice | {"finish_reason": "stop"}], "usage": usage})

    def _stream(self, *, broken: bool, until_left: bool = False) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for word in ("a", "b", "c"):
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
        if until_left:
            with contextlib.suppress(ConnectionError):
                self.connection.recv(1)
        if not broken:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: object) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()

    def _whole(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Engines(ThreadingHTTPServer):
    """One faulty engine; clients that leave are no news."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), FaultyEngine)
        self.rng = Random(seed)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def engines() -> Iterator[list[str]]:
    servers = [Engines(seed) for seed in range(3)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"http://127.0.0.1:{server.server_port}/v1" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


class Recorded:
    """A gateway process that records."""

    def __init__(self, folder: Path, engines: list[str], policy: str) -> None:
        self.folder = folder
        self.log = folder / "events.jsonl"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
        self.env |= {"SAGE_HOME": str(folder / "home"), "SAGE_MASTER_KEY": KEY}
        models = [
            {
                "model_name": "m",
                "litellm_params": {"model": "openai/m", "api_base": url},
                "model_info": {"id": f"e{i}", "max_concurrency": 2},
            }
            for i, url in enumerate(engines)
        ]
        tenants = [{"name": "t", "key": "sk-tenant", "weight": 2}]
        bands = {"interactive": {"ttft_slo_ms": 800, "tpot_slo_ms": 80}}
        settings = {
            "recording": {"file": str(self.log), "flush_s": 0.05},
            "bands": bands,
            "tenants": tenants,
            "queue": {"max_requests": 20},
            "health": {"probe_interval_s": 0.05, "failures": 1},
        }
        content = {
            "model_list": models,
            "router_settings": {"routing_strategy": policy},
            "sage_settings": settings,
        }
        (folder / "gateway.yaml").write_text(json.dumps(content))
        self.printed = folder / "gateway.log"
        with self.printed.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sage_gateway"),
                    *("--config", str(folder / "gateway.yaml"), "--port", "0"),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.env,
            )

    def url(self) -> str:
        found: list[str] = []

        def listens() -> bool:
            assert self.process.poll() is None, self.printed.read_text()
            found[:] = re.findall(r"listening on (http://\S+)", self.printed.read_text())
            return bool(found)

        until(listens)
        return found[0]

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def replayed(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sage_prefect.cli.main", "gateway", "replay"]
        return subprocess.run(
            [*command, str(self.log)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def call(client: httpx.Client, number: int) -> int:
    """One client: some stream, some leave early, some are another tenant's."""
    leaving = number % 7 == 0
    body = {
        "model": "m" if number % 17 else "nobody-serves-this",
        "messages": [{"role": "user", "content": f"{SECRET} {number}"}],
        "stream": leaving or number % 2 == 0,
        "user": LEAVING if leaving else "stays",
        "max_tokens": 64,
        "priority": number % 3 * 30,
    }
    key = "sk-tenant" if number % 5 == 0 else KEY
    headers = {"authorization": f"Bearer {key}"}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        if leaving:
            return 0
        with contextlib.suppress(httpx.RemoteProtocolError):  # some answers are cut off
            for _ in answer.iter_raw():
                pass
        return answer.status_code


def crowd(url: str, numbers: range) -> list[int]:
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(24) as clients:
        return list(clients.map(lambda number: call(client, number), numbers))


@pytest.mark.parametrize("policy", ["hybrid", "power_of_two"])
def test_a_crowd_with_faults_replays_identically(
    tmp_path: Path, engines: list[str], policy: str
) -> None:
    gateway = Recorded(tmp_path, engines, policy)
    try:
        url = gateway.url()
        statuses = crowd(url, range(REQUESTS // 2))
        headers = {"authorization": f"Bearer {KEY}"}
        switch = {"policy": "fair" if policy == "hybrid" else "hybrid"}
        httpx.put(f"{url}/v1/management/policy", json=switch, headers=headers).raise_for_status()
        statuses += crowd(url, range(REQUESTS // 2, REQUESTS))
        metrics = httpx.get(f"{url}/metrics").text
        assert gateway.stop(signal.SIGTERM) == 0
    finally:
        gateway.process.kill()
        gateway.process.wait(10)
    assert {0, 200, 404} <= set(statuses)
    assert statuses.count(200) > REQUESTS // 10
    assert "sage_gateway_recording 1.0" in metrics
    log = read_log(gateway.log)
    steps = list(log)
    kinds = {type(step.event) for step in steps}
    assert {Arrival, FirstToken, Done, Failed, Cancel, EngineReport, PolicyChanged} <= kinds
    assert not log.torn
    assert sum(type(step.event) is Arrival for step in steps) == REQUESTS
    assert SECRET not in gateway.log.read_text(encoding="ascii")
    replayed = gateway.replayed()
    assert replayed.stdout == f"identical: {len(steps)} steps\n"
    assert replayed.returncode == 0


def test_a_killed_gateway_leaves_a_log_that_reads_to_its_last_flush(
    tmp_path: Path, engines: list[str]
) -> None:
    gateway = Recorded(tmp_path, engines, "least_outstanding")
    try:
        crowd(gateway.url(), range(60))
        # All of it has been flushed once the last request's arrival is there.
        until(lambda: gateway.log.read_bytes().count(b'"type":"Arrival"') == 60)
        gateway.stop(signal.SIGKILL)
    finally:
        gateway.process.kill()
        gateway.process.wait(10)
    steps = list(read_log(gateway.log))
    assert sum(type(step.event) is Arrival for step in steps) == 60
    with gateway.log.open("ab") as file:
        file.write(b'{"v":2,"type":"Step","at":1')  # as if the kill had come in a write
    replayed = gateway.replayed()
    assert "half-written" in replayed.stdout
    assert f"identical: {len(steps)} steps" in replayed.stdout


def test_a_full_disk_stops_the_recording_and_nothing_else(tmp_path: Path) -> None:
    class Reliable(Random):
        def random(self) -> float:
            return 0.999

    server = Engines(0)
    server.rng = Reliable()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    gateway = Recorded(tmp_path, [f"http://127.0.0.1:{server.server_port}/v1"], "fifo")
    try:
        with httpx.Client(base_url=gateway.url(), timeout=60) as client:
            assert call(client, 1) == 200
            until(lambda: gateway.log.stat().st_size > 0)
            # From now on the system refuses to make files longer than this.
            limit = 20_000
            resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
            numbers = itertools.cycle((1, 2, 3, 4))
            while "sage_gateway_recording 1.0" in client.get("/metrics").text:
                assert call(client, next(numbers)) == 200
            assert [call(client, number) for number in (1, 2, 3, 4)] == [200] * 4
        assert gateway.stop(signal.SIGTERM) == 0
    finally:
        gateway.process.kill()
        gateway.process.wait(10)
        server.shutdown()
        server.server_close()
        thread.join()
    printed = gateway.printed.read_text()
    assert printed.count("The event log") == 1
    assert "Serving goes on." in printed
    assert gateway.log.stat().st_size <= limit
    replayed = gateway.replayed()
    assert "identical: " in replayed.stdout


def test_a_changed_decision_is_shown(tmp_path: Path, engines: list[str]) -> None:
    gateway = Recorded(tmp_path, engines, "fifo")
    try:
        crowd(gateway.url(), range(20))
        assert gateway.stop(signal.SIGTERM) == 0
    finally:
        gateway.process.kill()
        gateway.process.wait(10)
    text = gateway.log.read_text()
    decision = r'("type":"Dispatch","request_id":"[^"]+","engine":)"e\d"'
    changed = re.sub(decision, r'\1"e9"', text, count=1)
    assert changed != text
    gateway.log.write_text(changed)
    replayed = gateway.replayed()
    assert replayed.returncode == 1
    assert "steps are identical, then" in replayed.stdout
    assert '"engine":"e9"' in replayed.stdout


def test_a_path_that_cannot_be_written_is_an_error_at_the_start(
    tmp_path: Path, engines: list[str]
) -> None:
    env = {**os.environ, "SAGE_HOME": str(tmp_path / "home"), "SAGE_MASTER_KEY": KEY}
    command = [sys.executable, "-m", "sage_gateway", "--port", "0"]
    for file in (tmp_path / "no" / "folder" / "log", tmp_path, Path("/dev/full")):
        done = subprocess.run(
            [*command, "--record", str(file)],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "error: the event log" in done.stderr
        assert "listening" not in done.stdout
