"""Real engines under the real supervisor, known to the real gateway."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sage_prefect.cli.stack import gateway_spec
from sage_prefect.common import endpoints
from sage_prefect.common.keys import ensure_master_key
from sage_prefect.common.paths import state_dir
from sage_prefect.common.settings import Settings
from sage_prefect.platform.engines.base import EngineOptions
from sage_prefect.platform.engines.choice import embedding_service, llm_service
from sage_prefect.platform.processes import members
from sage_prefect.platform.service import ServiceState
from sage_prefect.platform.supervisor_client import SupervisorClient

pytestmark = pytest.mark.e2e

LLM = llm_service("smollm2-135m", "llamacpp", options=EngineOptions(slots=2, context=1024))
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
LONG = {
    "model": "smollm2-135m",
    "messages": QUESTION,
    "max_tokens": 900,
    "ignore_eos": True,  # else it may end before we look
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One state directory for this module; nothing of it runs afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGE_HOME", str(tmp_path_factory.mktemp("engines")))
        yield
        SupervisorClient.connect().shutdown()
        assert members(str(state_dir())) == []


@pytest.fixture
def client() -> SupervisorClient:
    return SupervisorClient.connect()


@pytest.fixture
def llm(client: SupervisorClient) -> ServiceState:
    """The running llama.cpp engine."""
    return client.start(LLM)


def eventually(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)


def busy_slots(llm: ServiceState) -> int:
    slots = httpx.get(f"{llm.url}/slots", timeout=30).json()
    return sum(bool(slot["is_processing"]) for slot in slots)


def chat(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "smollm2-135m", "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    key = {"Authorization": f"Bearer {ensure_master_key()}"}
    return httpx.post(
        f"{url}/v1/chat/completions", json={**body, **fields}, headers=key, timeout=120
    )


def test_chat_and_usage(llm: ServiceState) -> None:
    answer = chat(str(llm.url)).json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] > 8
    assert answer["model"] == "smollm2-135m"


def test_stream_ends_with_usage(llm: ServiceState) -> None:
    body = {**LONG, "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}}
    text, usage, done = "", None, False
    url = f"{llm.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
    assert done
    assert text.strip()
    assert usage is not None
    assert usage["completion_tokens"] == 6


def test_disconnect_frees_the_slot(llm: ServiceState) -> None:
    url = f"{llm.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=120) as response:
        lines = response.iter_lines()  # closing it would close the response
        next(lines)
        assert busy_slots(llm) == 1
    eventually(lambda: busy_slots(llm) == 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=LONG, timeout=httpx.Timeout(120, read=0.2))
    eventually(lambda: busy_slots(llm) == 0)


def test_slots_serve_at_the_same_time(llm: ServiceState) -> None:
    url = f"{llm.url}/v1/chat/completions"
    with (
        httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=120) as one,
        httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=120) as two,
    ):
        first, second = one.iter_lines(), two.iter_lines()
        next(first)
        next(second)
        assert busy_slots(llm) == 2


def test_what_it_reports(llm: ServiceState) -> None:
    from sage_prefect.platform.engines import driver

    text = httpx.get(f"{llm.url}/metrics", timeout=30).text
    for metric in driver("llamacpp").metrics.values():
        assert f"\n{metric} " in text, metric


def test_killed_engine_comes_back(client: SupervisorClient, llm: ServiceState) -> None:
    assert llm.pid is not None
    os.kill(llm.pid, signal.SIGKILL)

    def back() -> bool:
        now = client.get(llm.name)
        return now is not None and now.status == "ready" and now.pid != llm.pid

    eventually(back)
    after = client.get(llm.name)
    assert after is not None
    assert after.url == llm.url
    assert chat(str(after.url)).status_code == 200


def test_bad_model_file_shows_why(
    client: SupervisorClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from sage_prefect.common.errors import ServiceError
    from sage_prefect.platform.models import resolve

    cut = tmp_path_factory.mktemp("models") / "cut.gguf"
    with resolve("smollm2-135m").path.open("rb") as whole:
        cut.write_bytes(whole.read(5 << 20))
    spec = llm_service(str(cut), "llamacpp", name="cut")
    with pytest.raises(ServiceError, match="service 'cut' did not start") as caught:
        client.start(spec)
    assert "llama" in caught.value.message.lower() or "model" in caught.value.message.lower()
    client.stop("cut")


def test_embedding_engine(client: SupervisorClient) -> None:
    state = client.start(embedding_service("all-minilm-l6-v2"))
    body = {"model": "all-minilm-l6-v2", "input": ["one", "two"], "encoding_format": "base64"}
    answer = httpx.post(f"{state.url}/v1/embeddings", json=body, timeout=120).json()
    vectors = [base64.b64decode(item["embedding"]) for item in answer["data"]]
    assert [len(struct.unpack(f"<{len(v) // 4}f", v)) for v in vectors] == [384, 384]
    client.stop(state.name)
    assert members(str(state_dir()), state.name) == []


def listed(gateway: str) -> set[str]:
    key = {"Authorization": f"Bearer {ensure_master_key()}"}
    answer = httpx.get(f"{gateway}/v1/management/engines", headers=key, timeout=30)
    return {engine["name"] for engine in answer.json()["engines"]}


def test_gateway_hears_of_engines(client: SupervisorClient, llm: ServiceState) -> None:
    """Registered when either starts, again when the gateway was killed, removed at stop."""
    state = client.start(gateway_spec(Settings()))
    gateway = str(state.url)
    assert endpoints.lookup("gateway") == gateway
    assert listed(gateway) == {llm.name}
    assert chat(gateway).json()["choices"][0]["message"]["content"].strip()
    known = client.get(llm.name)
    assert known is not None
    assert known.registered is True

    assert state.pid is not None
    os.kill(state.pid, signal.SIGKILL)

    def back() -> bool:
        now = client.get("gateway")
        return now is not None and now.status == "ready" and now.pid != state.pid

    eventually(back)
    eventually(lambda: listed(gateway) == {llm.name})

    client.stop(llm.name)
    assert listed(gateway) == set()
    client.start(LLM)
    assert listed(gateway) == {llm.name}
    external = llm_service(
        "smollm2-135m",
        "openai",
        name="elsewhere",
        options=EngineOptions(base_url=f"{client.start(LLM).url}/v1"),
    )
    client.start(external)
    assert listed(gateway) == {llm.name, "elsewhere"}
    client.stop("elsewhere", "gateway")
    assert endpoints.lookup("gateway") is None


def test_external_engine_that_is_not_there(
    client: SupervisorClient, free_port: Callable[[], int]
) -> None:
    from sage_prefect.common.errors import ServiceError

    options = EngineOptions(base_url=f"http://127.0.0.1:{free_port()}/v1", start_timeout_s=1.0)
    with pytest.raises(ServiceError, match="was not ready within 1 s"):
        client.start(llm_service("m", "openai", options=options))
    client.stop("m")


def sage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sage_prefect.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_commands(client: SupervisorClient) -> None:
    served = sage("llm", "serve", "smollm2-135m", "--engine", "llamacpp", "--name", "mine")
    assert served.returncode == 0, served.stderr
    assert "mine: ready" in served.stdout
    shown = sage("llm", "list")
    assert "mine" in shown.stdout
    assert "llamacpp" in shown.stdout
    assert "mine" not in sage("embedding", "list").stdout
    assert sage("llm", "stop", "mine").returncode == 0
    gone = sage("llm", "stop", "mine")
    assert gone.returncode == 1
    assert "no engine 'mine' runs" in gone.stderr
    unknown = sage("llm", "serve", "smollm3")
    assert unknown.returncode == 1
    assert "Did you mean 'smollm2-135m'" in unknown.stderr
    assert sage("models", "path", "smollm2-135m").stdout.strip().endswith(".gguf")
    assert "all-minilm-l6-v2" in sage("models", "list").stdout
    assert client.get("mine") is None


def test_foreground_ends_with_ctrl_c(client: SupervisorClient) -> None:
    command = ("llm", "serve", "smollm2-135m", "--engine", "llamacpp", "--name", "front")
    process = subprocess.Popen(
        [sys.executable, "-m", "sage_prefect.cli.main", *command, "--foreground"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert members(str(state_dir()), "front") == []
    assert client.get("front") is None


def test_doctor(client: SupervisorClient) -> None:
    done = sage("doctor", "--json")
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert found["engine llamacpp"]["status"] == "OK"
    assert done.returncode == int(any(row["status"] == "FAIL" for row in found.values()))
