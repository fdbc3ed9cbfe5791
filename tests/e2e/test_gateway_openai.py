"""The unmodified ``openai`` package through the gateway to real engines (llama.cpp, embeddings)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-master"
CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"
START_S = 180


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
    import socket

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


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
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
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


QUESTION: list[dict[str, str]] = [{"role": "user", "content": "What colour is the sky? One word."}]


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"assistant", CHAT, EMBEDDING}
    assert client.models.retrieve(CHAT).id == CHAT


def test_chat_whole_and_streamed_agree(client: openai.OpenAI) -> None:
    common = {"model": "assistant", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    raw = client.chat.completions.with_raw_response.create(**common)
    whole = raw.parse()
    assert raw.headers["x-sage-engine"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens >= 1
    assert whole.choices[0].finish_reason in ("stop", "length")
    stream = client.chat.completions.create(
        **common, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    unasked = client.chat.completions.create(**common, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in unasked)


def test_an_assembled_answer_is_the_engines_own(serving: Serving, client: openai.OpenAI) -> None:
    """llama.cpp is asked to stream; what the client gets must equal its non-streaming answer."""
    body = {
        "model": CHAT,
        "messages": QUESTION,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    through = client.chat.completions.create(**body).model_dump()
    with openai.OpenAI(base_url=f"{serving.llm_url}/v1", api_key="none") as direct_client:
        direct = direct_client.chat.completions.create(**body).model_dump()
    assert set(direct) <= set(through)
    ours, theirs = through["choices"][0], direct["choices"][0]
    assert set(theirs) <= set(ours)
    assert ours["message"]["content"] == theirs["message"]["content"]
    assert ours["finish_reason"] == theirs["finish_reason"]
    assert through["object"] == direct["object"] == "chat.completion"
    assert through["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
    tokens = [[entry["token"] for entry in c["logprobs"]["content"]] for c in (ours, theirs)]
    assert tokens[0] == tokens[1]


def test_completions(client: openai.OpenAI) -> None:
    done = client.completions.create(model=CHAT, prompt="The sky is", max_tokens=6, temperature=0)
    assert done.choices[0].text.strip()
    streamed = client.completions.create(
        model=CHAT, prompt="The sky is", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(c.text for chunk in streamed for c in chunk.choices) == done.choices[0].text


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["blue", "red"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        max_tokens=30,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("blue", "red")


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply."]
    # The package asks for base64 by itself and decodes it.
    decoded = client.embeddings.create(model=EMBEDDING, input=texts)
    vectors = np.array([item.embedding for item in decoded.data])
    assert vectors.shape == (3, 384)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2
    plain = client.embeddings.create(model=EMBEDDING, input=texts[0], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, vectors[0], atol=1e-4)
    assert decoded.usage.prompt_tokens > 0


async def test_async_client(serving: Serving) -> None:
    async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key=KEY) as client:
        stream = await client.chat.completions.create(
            model=CHAT, messages=QUESTION, max_tokens=5, stream=True
        )
        pieces = [chunk async for chunk in stream]
    assert pieces[-1].choices[0].finish_reason


def test_errors_are_the_packages_own(serving: Serving, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"Known models: {EMBEDDING}, assistant"):
        client.chat.completions.create(model="nope", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=CHAT, messages=[])
    stranger = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model=EMBEDDING, messages=QUESTION)


def test_a_question_of_100_000_characters(client: openai.OpenAI) -> None:
    """Too long for the context: the engine's own clear error, not a hang and not a crash."""
    long = [{"role": "user", "content": "why " * 25_000}]
    with pytest.raises(openai.APIStatusError, match="context") as caught:
        client.chat.completions.create(model=CHAT, messages=long, max_tokens=5)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_when_the_client_goes(
    serving: Serving, client: openai.OpenAI, stream: bool
) -> None:
    serving.until_slots(busy=False, limit_s=60)
    story = [{"role": "user", "content": "Write a very long story about a whale."}]
    body = {"model": CHAT, "messages": story, "max_tokens": 1500, "temperature": 0.8}
    if stream:
        events = client.chat.completions.create(**body, stream=True)
        next(iter(events))
        serving.until_slots(busy=True, limit_s=60)
        events.close()
    else:
        import http.client

        connection = http.client.HTTPConnection(serving.url.removeprefix("http://"))
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        serving.until_slots(busy=True, limit_s=60)
        connection.close()
    # 1,500 tokens take longer than this on any machine where the slot would stay busy.
    serving.until_slots(busy=False, limit_s=20)


def test_nothing_secret_in_the_log(serving: Serving) -> None:
    assert KEY not in serving.log.read_text()
