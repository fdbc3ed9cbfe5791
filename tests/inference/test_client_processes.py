"""Clients across threads, forks and pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sage_prefect.inference.client import AsyncInferenceClient, UnifiedInferenceClient


def echo(exchange: Any) -> None:
    exchange.answer(200, {"choices": [{"text": exchange.json()["prompt"]}]})


def test_many_threads_share_a_client(serve: Any) -> None:
    with (
        UnifiedInferenceClient.create(serve(echo).url) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        prompts = [f"prompt {i}" for i in range(100)]
        results = pool.map(lambda prompt: client.generate(prompt, model="m").text, prompts)
        assert list(results) == prompts


FORK = """
import os, sys
from sage_prefect.inference.client import UnifiedInferenceClient

client = UnifiedInferenceClient.create(sys.argv[1])
assert client.generate("parent", model="m").text == "parent"
assert client.embed(["a", "b"], model="m").shape == (2, 1)
child = os.fork()
name = "parent again" if child else "child"
assert client.generate(name, model="m").text == name
assert client.embed(["a", "b"], model="m").shape == (2, 1)
client.close()
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""


def test_a_forked_process_gets_connections_of_its_own(serve: Any) -> None:
    def script(exchange: Any) -> None:
        if exchange.path == "/v1/embeddings":
            texts = exchange.json()["input"]
            rows = [{"index": i, "embedding": [1.0]} for i in range(len(texts))]
            exchange.answer(200, {"data": rows})
        else:
            echo(exchange)

    server = serve(script)
    subprocess.run([sys.executable, "-c", FORK, server.url], check=True, timeout=60)
    # Parent and child never wrote on one connection.
    ports = {r.json().get("prompt"): r.client_port for r in server.requests}
    assert ports["child"] not in (ports["parent"], ports["parent again"])


@pytest.mark.parametrize("kind", [UnifiedInferenceClient, AsyncInferenceClient])
def test_a_client_is_not_pickled(kind: Any) -> None:
    client = kind.create("http://127.0.0.1:1")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)
    config = pickle.loads(pickle.dumps(client.config))
    assert config.base_url == "http://127.0.0.1:1/v1"


def test_importing_the_package_loads_no_http_library() -> None:
    code = "import sage_prefect.inference, sys; assert 'httpx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
