"""One real vLLM, on the CPU, through the driver: conversion, chat, streaming, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from sage_prefect.common.paths import cache_dir, state_dir
from sage_prefect.platform.engines import driver
from sage_prefect.platform.engines.base import EngineOptions
from sage_prefect.platform.processes import members
from sage_prefect.platform.service import ServiceState
from sage_prefect.platform.supervisor_client import SupervisorClient

_AVAILABLE = driver("vllm").availability()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not _AVAILABLE.ok, reason=f"{_AVAILABLE.detail} {_AVAILABLE.hint}"),
]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceState]:
    """SmolLM2 in vLLM, converted from its GGUF file in a fresh home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGE_HOME", str(tmp_path_factory.mktemp("vllm")))
        client = SupervisorClient.connect()
        try:
            options = EngineOptions(slots=4, context=1024)
            yield client.start(driver("vllm").service("smollm2-135m", options=options))
        finally:
            client.shutdown()
        assert members(str(state_dir())) == []


def test_converted_and_listed(vllm: ServiceState) -> None:
    (folder,) = (cache_dir() / "converted").glob("smollm2-135m-*/")
    assert (folder / "model.safetensors").is_file()
    models = httpx.get(f"{vllm.url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("smollm2-135m", 1024)]


def test_chat(vllm: ServiceState) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    answer = httpx.post(f"{vllm.url}/v1/chat/completions", json=body, timeout=120).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 1


def test_stream(vllm: ServiceState) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 12,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = []
    url = f"{vllm.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    assert len(text.split()) > 3
    assert events[-1]["usage"]["completion_tokens"] == 12


def test_what_it_reports(vllm: ServiceState) -> None:
    text = httpx.get(f"{vllm.url}/metrics", timeout=60).text
    for metric in driver("vllm").metrics.values():
        assert f"\n{metric}{{" in text, metric
