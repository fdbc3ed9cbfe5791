"""A small server that speaks OpenAI's protocol, and a clean operator pool per test."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sage_prefect.kernel.operator_pool import pool

DIM = 64
Answer = tuple[int, dict[str, Any], dict[str, str]]


def vector_of(text: str) -> np.ndarray:
    """The same text gives the same vector; texts that share words are near."""
    made = np.zeros(DIM, dtype=np.float32)
    for word in text.lower().split():
        seed = sum(ord(c) * 31**i for i, c in enumerate(word)) % (1 << 32)
        made += np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return made / (np.linalg.norm(made) or 1)


def refusal(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "x", "param": None, "code": None}}, {}


class Engine:
    """What the server saw, and how it shall answer."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.hook: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        hooked = self.hook(body)
        if hooked is not None:
            return hooked
        if path == "/v1/embeddings":
            data = [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector_of(text).tobytes()).decode(),
                }
                for index, text in enumerate(body["input"])
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return 200, {"object": "list", "data": data, "model": body["model"], "usage": usage}, {}
        if path == "/v1/chat/completions":
            asked = body["messages"][-1]["content"]
            message = {"role": "assistant", "content": f"re: {asked}"}
            reply = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
            return 200, reply, {"x-sage-engine": "tiny"}
        return refusal(404, f"no route {path}")

    def asked(self) -> list[str]:
        """Questions of all chat requests, sorted."""
        return sorted(r["messages"][-1]["content"] for r in self.requests if "messages" in r)

    def embedded(self) -> list[list[str]]:
        """Texts of each embedding request."""
        return [r["input"] for r in self.requests if "input" in r]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A running server; ``SAGE_BASE_URL`` names it."""
    state = Engine()

    class Handler(BaseHTTPRequestHandler):
        # HTTP/1.0 closes after each answer: no connection outlives its request.
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                state.requests.append(body)
                state.headers.append({k.lower(): v for k, v in self.headers.items()})
                state.in_flight += 1
                state.most_in_flight = max(state.most_in_flight, state.in_flight)
            try:
                status, reply, headers = state.answer(self.path, body)
            finally:
                with state.lock:
                    state.in_flight -= 1
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SAGE_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("SAGE_API_KEY", "sk-test")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    """Operators that a pipeline set up are closed with the test."""
    yield
    pool.close()


@pytest.fixture(name="vector_of")
def _vector_of() -> Callable[[str], np.ndarray]:
    """The vector that the engine gives for a text."""
    return vector_of


@pytest.fixture(name="refusal")
def _refusal() -> Callable[[int, str], Answer]:
    """An answer that refuses."""
    return refusal
