"""Schemathesis against the gateway's own description: what is described holds, for good input and
for bad."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")
pytestmark = pytest.mark.e2e

KEY = "sk-e2e-openapi"
ALL = ("--checks", "all")
# 501 and 503 are answers to input too; and what an engine accepts is not described.
PASSED_ON = (*ALL, "--exclude-checks", "not_a_server_error,positive_data_acceptance")


class Engine(BaseHTTPRequestHandler):
    """Answers everything, and well."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b'{"data":[]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "embeddings" in self.path:
            count = len(asked["input"]) if isinstance(asked["input"], list) else 1
            data = [{"index": i, "embedding": [0.5]} for i in range(count)]
            content: object = {"data": data, "usage": {"prompt_tokens": count}}
        else:
            said = {"role": "assistant", "content": "hi"}
            choice = {"index": 0, "message": said, "text": "hi", "finish_reason": "stop"}
            content = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
            if asked.get("stream"):
                piece = {"choices": [{"index": 0, "delta": said, "finish_reason": "stop"}]}
                stream = f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n"
                self._answer(stream.encode(), "text/event-stream")
                return
        self._answer(json.dumps(content).encode())

    def _answer(self, body: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its address and its log."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}/v1"
    params = {"model": "openai/*", "api_base": base}
    listed = [
        {"model_name": "*", "litellm_params": params, "model_info": {"mode": mode}}
        for mode in ("chat", "embedding", "rerank")
    ]
    config, log = tmp_path / "gateway.yaml", tmp_path / "gateway.log"
    config.write_text(json.dumps({"model_list": listed}))
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    env |= {"SAGE_HOME": str(tmp_path / "home"), "SAGE_MASTER_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sage_gateway", "--port", "0", "--config", str(config)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    deadline = time.monotonic() + 60
    while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    yield found.group(1), log
    process.terminate()
    assert process.wait(60) == 0
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("tags", "checks"),
    [
        pytest.param(("management",), ALL, id="management"),
        pytest.param(("inference", "operation"), PASSED_ON, id="inference", marks=pytest.mark.slow),
    ],
)
def test_what_is_described_holds(
    gateway: tuple[str, Path], tmp_path: Path, tags: tuple[str, ...], checks: tuple[str, ...]
) -> None:
    url, log = gateway
    chosen = [part for tag in tags for part in ("--include-tag", tag)]
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {KEY}", *chosen, *checks, "--no-color"]
    command += ["--max-examples", "20", "--seed", "1"]
    command += ["--suppress-health-check", "filter_too_much"]  # names of engines that exist
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert generated is not None, ran.stdout[-2000:]
    assert int(generated[1]) == int(generated[2]) > 300
    assert "Traceback" not in log.read_text()
