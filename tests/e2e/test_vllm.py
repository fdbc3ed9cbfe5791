"""One real vLLM, on the CPU, through the driver: conversion, chat, streaming, the answer flow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from sage_prefect.platform.engines import driver

_AVAILABLE = driver("vllm").availability()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not _AVAILABLE.ok, reason=f"{_AVAILABLE.detail} {_AVAILABLE.hint}"),
]


@pytest.fixture(scope="module")
def vllm(stack) -> Iterator[Served]:
    """SmolLM2 in vLLM, converted from its GGUF file, in the place of the stack's LLM engine."""
    stack.sage("llm", "stop", "smollm2-135m")
    args = ("--engine", "vllm", "--slots", "4", "--context", "1024")
    try:
        stack.sage("llm", "serve", "smollm2-135m", *args, timeout=580)
        yield Served(stack.services()["smollm2-135m"]["endpoints"]["smollm2-135m"])
        stack.sage("llm", "stop", "smollm2-135m")
    finally:
        stack.sage("up")  # llama.cpp again


@dataclass(frozen=True)
class Served:
    """Where vLLM listens."""

    url: str


def test_converted_and_listed(stack, vllm: Served) -> None:
    (folder,) = (stack.home / "cache" / "converted").glob("smollm2-135m-*/")
    assert (folder / "model.safetensors").is_file()
    models = httpx.get(f"{vllm.url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("smollm2-135m", 1024)]


def test_answer_flow(stack, vllm: Served, tmp_path: Path) -> None:
    """The flow of the demo, unchanged, answers over vLLM through the gateway."""
    service = stack.services()["smollm2-135m"]
    assert (service["driver"], service["registered"]) == ("vllm", True)
    (tmp_path / "a.md").write_text("# Harbour\n\nThe lighthouse keeper is called Bodo.\n")
    out = tmp_path / "out.json"
    question = "What is the name of the lighthouse keeper?"
    stack.sage("demo", "--docs", str(tmp_path), "--question", question, "--out", str(out))
    (row,) = json.loads(out.read_text())["answers"]
    assert row["engine"] == "smollm2-135m"
    assert "Bodo" in row["answer"]
    assert any("a.md" in source for source in row["sources"])


def test_chat(vllm: Served) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    answer = httpx.post(f"{vllm.url}/v1/chat/completions", json=body, timeout=120).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 1


def test_stream(vllm: Served) -> None:
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


def test_what_it_reports(vllm: Served) -> None:
    text = httpx.get(f"{vllm.url}/metrics", timeout=60).text
    for metric in driver("vllm").metrics.values():
        assert f"\n{metric}{{" in text, metric
