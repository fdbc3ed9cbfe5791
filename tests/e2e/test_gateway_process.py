"""The gateway as a process: start, signals, ports, engines that are killed."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-process"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class Process:
    """``python -m sage_gateway`` (or ``sage gateway start``) and what it printed."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)

    def url(self) -> str:
        deadline = time.monotonic() + 60
        while True:
            found = re.search(r"listening on (http://\S+)", self.log.read_text())
            if found:
                return found.group(1)
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(60)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    env |= {"SAGE_HOME": str(tmp_path / "home"), "SAGE_MASTER_KEY": KEY, "PYTHONUNBUFFERED": "1"}

    def run(*arguments: str, module: str = "sage_gateway", limit: int = 0, **more: str) -> Process:
        command = [sys.executable, "-m", module, *arguments]
        if limit:
            command = ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "bash", *command]
        process = Process(command, tmp_path / f"{len(started)}.log", env | more)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)


class SlowEngine(BaseHTTPRequestHandler):
    """Streams a word, waits for ``release``, ends."""

    release = threading.Event()
    began = threading.Event()
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})
        self.began.set()
        self.release.wait(60)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, content: object) -> None:
        self._chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    SlowEngine.release.clear()
    SlowEngine.began.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowEngine)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    SlowEngine.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def config(tmp_path: Path, engine: str, **sage: object) -> str:
    file = tmp_path / "gateway.yaml"
    entry = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": engine}}
    file.write_text(json.dumps({"model_list": [entry], "sage_settings": sage}))
    return str(file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_streams_finish_and_new_connections_are_refused(
    start: Start, engine: str, tmp_path: Path, number: signal.Signals
) -> None:
    gateway = start("--config", config(tmp_path, engine), "--port", "0")
    url = gateway.url()
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers
    ) as answer:
        pieces = answer.iter_raw()
        content = next(pieces)
        gateway.popen.send_signal(number)
        deadline = time.monotonic() + 30
        while answers(url):
            assert time.monotonic() < deadline, "it goes on listening"
            time.sleep(0.02)
        assert gateway.popen.poll() is None
        SlowEngine.release.set()
        content += b"".join(pieces)
    assert content.endswith(b"data: [DONE]\n\n")
    assert b"error" not in content
    assert gateway.popen.wait(30) == 0


def test_a_stream_that_outlasts_the_shutdown_ends_with_an_error_event(
    start: Start, engine: str, tmp_path: Path
) -> None:
    file = config(tmp_path, engine, server={"shutdown_s": 0.2})
    gateway = start("--config", file, "--port", "0")
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST",
        f"{gateway.url()}/v1/chat/completions",
        json={**CHAT, "stream": True},
        headers=headers,
    ) as answer:
        pieces = answer.iter_raw()
        content = next(pieces)
        gateway.popen.send_signal(signal.SIGTERM)
        content += b"".join(pieces)
    assert b"shutting down" in content
    assert b"[DONE]" not in content
    assert gateway.popen.wait(30) == 0
    assert "Traceback" not in gateway.log.read_text()


def test_engines_come_by_the_management_api(start: Start, engine: str) -> None:
    SlowEngine.release.set()
    gateway = start("--port", "0", "--policy", "fifo")
    url, headers = gateway.url(), {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        assert client.get("/ready").status_code == 503
        added = client.post(
            "/v1/management/engines",
            json={"name": "slow", "base_url": engine, "models": [{"name": "m"}]},
        )
        assert added.status_code == 201
        assert client.get("/ready").status_code == 200
        assert b"Hi" in client.post("/v1/chat/completions", json={**CHAT, "stream": True}).content
        assert client.get("/v1/management/policy").json()["policy"] == "fifo"
    assert gateway.stop() == 0


def test_explicit_port_taken(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start("--port", str(port))
        assert process.popen.wait(60) == 1
    assert f"error: port {port}" in process.log.read_text()


def test_no_key(start: Start) -> None:
    refused = start("--port", "0", SAGE_MASTER_KEY="")
    assert refused.popen.wait(60) == 1
    assert "no master key" in refused.log.read_text()
    open_gateway = start("--port", "0", "--no-auth", SAGE_MASTER_KEY="")
    assert httpx.get(f"{open_gateway.url()}/v1/models").status_code == 200
    assert open_gateway.stop() == 0
    exposed = start("--port", "0", "--no-auth", "--host", "0.0.0.0", SAGE_MASTER_KEY="")
    assert exposed.popen.wait(60) == 1


def test_sage_gateway_start(start: Start, engine: str, tmp_path: Path) -> None:
    gateway = start(
        *("gateway", "start", "--config", config(tmp_path, engine), "--port", "0"),
        module="sage_prefect.cli.main",
    )
    assert httpx.get(f"{gateway.url()}/health").json() == {"status": "ok"}
    assert gateway.stop(signal.SIGINT) == 0
    wrong = start(
        "gateway", "start", "--config", str(tmp_path / "no.yaml"), module="sage_prefect.cli.main"
    )
    assert wrong.popen.wait(60) == 1
    assert "cannot be read" in wrong.log.read_text()


def test_the_gateway_loads_no_heavy_packages() -> None:
    code = (
        "import sys, sage_gateway.server; heavy = {'fastapi', 'prefect', 'distributed', 'dask', "
        "'torch', 'litellm', 'pandas', 'httpx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_flood_of_connections_takes_no_descriptors(start: Start) -> None:
    """Within 96 descriptors 16 connections are let in; the others are told, and all goes on."""
    process = start("--port", "0", limit=96)
    base = process.url()
    host, port = base.removeprefix("http://").split(":")
    flood = [socket.create_connection((host, int(port)), timeout=10) for _ in range(200)]
    refused = 0
    for connection in flood[16:]:
        refused += connection.recv(64).startswith(b"HTTP/1.1 503")
    assert refused == 184
    for connection in flood:
        connection.close()
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base}/health", timeout=10).status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.stop() == 0
    assert "Too many open files" not in process.log.read_text()


class CountingEngine(BaseHTTPRequestHandler):
    """Answers after 20 ms and remembers whom."""

    answered: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(0.02)  # its work
        body = b'{"choices":[{"index":0,"message":{"content":"ok"},"finish_reason":"stop"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.answered.append(asked["user"])

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def counting() -> Iterator[str]:
    CountingEngine.answered.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), CountingEngine)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_under_load(
    start: Start, counting: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Told to stop, it loses no request that it has taken; killed, it is back with its port and
    its engines as soon as it is started."""
    file = config(tmp_path, counting)
    first = start("--config", file, "--port", "0")
    url, headers = first.url(), {"authorization": f"Bearer {KEY}"}
    port = url.rpartition(":")[2]
    restarted, failures, served = threading.Event(), [], collections.Counter[str]()

    def ask(worker: int) -> None:
        after = 0
        for count in range(10_000):
            if after == 10:
                return
            user = f"{worker}-{count}"
            while True:
                try:
                    answer = httpx.post(
                        f"{url}/v1/chat/completions",
                        json={**CHAT, "user": user},
                        headers=headers,
                        timeout=30,
                    )
                except httpx.ConnectError:
                    continue  # it is away; nothing was sent
                except httpx.TransportError as error:
                    failures.append(repr(error))
                    break
                if answer.status_code == 200:
                    served[user] += 1
                    after += restarted.is_set()
                    break
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    failures.append(answer.text)
                    break

    workers = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 30
    while len(CountingEngine.answered) < 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.popen.send_signal(number)
    code = first.popen.wait(60)
    second = start("--config", file, "--port", port)
    assert second.url() == url
    restarted.set()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert set(served.values()) == {1}
    if number is signal.SIGTERM:
        assert code == 0
        assert not failures
        assert collections.Counter(CountingEngine.answered) == served
    else:
        assert code == -signal.SIGKILL
        # One in flight for each, and one that the dying process had let in.
        assert len(failures) <= 12
        assert set(served) <= set(CountingEngine.answered)
    state = httpx.get(f"{url}/v1/management/state", headers=headers).json()
    assert (state["running"], state["queued"]) == (0, 0)
    assert second.stop() == 0
