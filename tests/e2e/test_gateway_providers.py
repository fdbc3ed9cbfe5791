"""A provider that speaks another protocol, through the real litellm library: Anthropic's here.

The server of the test answers Anthropic's Messages API by its documentation; nothing of ours is in
it. The gateway is a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("litellm") is None,
        reason="needs the extra 'providers': pip install -e '.[providers]'",
    ),
]

KEY = "sk-e2e-providers"
ANTHROPIC_KEY = "sk-ant-of-the-test"
QUESTION = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}


@dataclass
class Anthropic:
    """What the server was sent, and what it does next."""

    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    error: tuple[int, str] | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """POST /v1/messages, streaming and not."""

    protocol_version = "HTTP/1.1"
    state: Anthropic

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.state.requests.append((headers, body))
        if self.path != "/v1/messages" or headers.get("x-api-key") != ANTHROPIC_KEY:
            self._json(401, self._error("authentication_error", "invalid x-api-key"))
        elif self.state.error is not None:
            status, message = self.state.error
            self._json(status, self._error("invalid_request_error", message))
        elif body.get("stream"):
            self._stream(body["model"])
        else:
            usage = {"input_tokens": 11, "output_tokens": 3}
            content = [{"type": "text", "text": "Hello there."}]
            self._json(200, self._message(body["model"], content, "end_turn", usage))

    def _message(
        self, model: str, content: list[Any], stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": "msg_test",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    @staticmethod
    def _error(kind: str, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": message}}

    def _json(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        start = self._message(model, [], None, {"input_tokens": 11, "output_tokens": 1})
        self._event("message_start", message=start)
        self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        try:
            for word in ("Hello", " there", "."):
                self._event(
                    "content_block_delta", index=0, delta={"type": "text_delta", "text": word}
                )
            while not self.state.hold.wait(0.02):
                self._event("ping")
        except OSError:
            self.state.gone.set()
            return
        self._event("content_block_stop", index=0)
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        self._event("message_delta", delta=delta, usage={"output_tokens": 3})
        self._event("message_stop")
        self._chunk(b"")

    def _event(self, kind: str, **fields: Any) -> None:
        data = json.dumps({"type": kind, **fields})
        self._chunk(f"event: {kind}\ndata: {data}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def anthropic() -> Iterator[Anthropic]:
    state = Anthropic()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    state.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Gateway:
    popen: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)


@pytest.fixture(scope="module")
def gateway(anthropic: Anthropic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("providers")
    params = {
        "model": "anthropic/claude-3-5-haiku-20241022",
        "api_base": anthropic.url,
        "api_key": "os.environ/THEIR_KEY",
    }
    content = {
        "model_list": [
            {"model_name": "claude", "litellm_params": params},
            {"model_name": "ant/*", "litellm_params": {**params, "model": "anthropic/*"}},
        ],
        "environment_variables": {"THEIR_KEY": ANTHROPIC_KEY},
    }
    file, log = folder / "gateway.yaml", folder / "gateway.log"
    file.write_text(json.dumps(content))
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    env |= {"SAGE_HOME": str(folder), "SAGE_MASTER_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "sage_gateway", "--config", str(file), "--port", "0"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
        )
    deadline = time.monotonic() + 120
    while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
        assert popen.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    headers = {"authorization": f"Bearer {KEY}"}
    # The library's import takes its time; until it is there calls wait.
    with httpx.Client(base_url=found.group(1), headers=headers, timeout=180) as client:
        yield Gateway(popen, log, client)
    if popen.poll() is None:
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(60) == 0


def test_a_whole_answer(gateway: Gateway, anthropic: Anthropic) -> None:
    answer = gateway.client.post("/v1/chat/completions", json={"model": "claude", **QUESTION})
    assert answer.status_code == 200, gateway.log.read_text()
    content = answer.json()
    assert content["object"] == "chat.completion"
    assert content["choices"][0]["message"]["content"] == "Hello there."
    assert content["choices"][0]["finish_reason"] == "stop"
    assert (content["usage"]["prompt_tokens"], content["usage"]["completion_tokens"]) == (11, 3)
    headers, body = anthropic.requests[-1]
    assert headers["x-api-key"] == ANTHROPIC_KEY
    assert body["model"] == "claude-3-5-haiku-20241022"
    assert body["max_tokens"] == 32
    assert answer.headers["x-sage-engine"].startswith("anthropic@127.0.0.1:")
    metrics = gateway.client.get("/metrics").text
    assert 'sage_gateway_tokens_total{kind="prompt",model="claude"} 11.0' in metrics


def test_a_stream(gateway: Gateway, anthropic: Anthropic) -> None:
    anthropic.hold.set()
    body = {"model": "claude", "stream": True, **QUESTION}
    text = gateway.client.post("/v1/chat/completions", json=body).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello there."


def test_a_wildcard_s_model_reaches_the_provider(gateway: Gateway, anthropic: Anthropic) -> None:
    body = {"model": "ant/claude-3-opus-20240229", **QUESTION}
    assert gateway.client.post("/v1/chat/completions", json=body).status_code == 200
    assert anthropic.requests[-1][1]["model"] == "claude-3-opus-20240229"


def test_cancellation_reaches_the_provider(gateway: Gateway, anthropic: Anthropic) -> None:
    anthropic.hold.clear()
    anthropic.gone.clear()
    body = {"model": "claude", "stream": True, **QUESTION}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    assert anthropic.gone.wait(30)
    anthropic.hold.set()


def test_errors_come_in_openai_s_shape(gateway: Gateway, anthropic: Anthropic) -> None:
    anthropic.error = (400, "prompt is too long: 300000 tokens > 200000 maximum")
    try:
        answer = gateway.client.post("/v1/chat/completions", json={"model": "claude", **QUESTION})
    finally:
        anthropic.error = None
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert ANTHROPIC_KEY not in answer.text


def test_a_client_cannot_choose_where_the_key_goes(gateway: Gateway, anthropic: Anthropic) -> None:
    before = len(anthropic.requests)
    for stolen in ({"api_base": "http://127.0.0.1:9"}, {"api_key": "x"}, {"base_url": "http://x"}):
        body = {"model": "claude", **QUESTION, **stolen}
        answer = gateway.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(stolen))
    assert len(anthropic.requests) == before


def test_the_library_s_process_is_started_again_and_ends_with_the_gateway(
    gateway: Gateway,
) -> None:
    """Last of this module: it stops the gateway."""
    (library,) = gateway.children()
    assert ANTHROPIC_KEY not in " ".join(library.cmdline())
    library.kill()
    answer = gateway.client.post("/v1/chat/completions", json={"model": "claude", **QUESTION})
    assert answer.status_code == 200, gateway.log.read_text()
    (again,) = gateway.children()
    assert again.pid != library.pid
    gateway.popen.kill()
    gateway.popen.wait(10)
    again.wait(60)
