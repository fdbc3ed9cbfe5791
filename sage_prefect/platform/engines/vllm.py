"""vLLM's OpenAI server, in an environment of its own (see ``vllm_env``); GPU, or CPU for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from sage_prefect.common.errors import ModelNotFoundError, ServiceError
from sage_prefect.common.paths import cache_dir
from sage_prefect.common.ports import SagePorts
from sage_prefect.platform.engines import vllm_server
from sage_prefect.platform.engines.base import (
    Availability,
    EngineDriver,
    EngineOptions,
    service_name,
)
from sage_prefect.platform.engines.vllm_env import VllmEnvironment, find
from sage_prefect.platform.gpus import list_gpus
from sage_prefect.platform.models import ModelFiles, resolve
from sage_prefect.platform.service import (
    EngineRegistration,
    GpuClaim,
    PortClaim,
    Probe,
    ServedModel,
    ServiceSpec,
)

BUILD_HINT = "Build it with: python -m sage_prefect.platform.engines.vllm_env"
# vLLM takes this part of a GPU for weights and KV cache when the user does not say how much.
_GPU_SHARE = 0.85
_CPU_KV_CACHE_GIB = 1


class VllmDriver(EngineDriver):
    """Serves chat models in Hugging Face layout, and GGUF files after converting them once."""

    name = "vllm"
    modes = frozenset({"chat"})
    metrics: ClassVar = {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_usage": "vllm:kv_cache_usage_perc",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generated_tokens": "vllm:generation_tokens_total",
    }

    def availability(self) -> Availability:
        """Whether vLLM's environment is built, and fits this machine."""
        environment = find()
        if environment is None:
            return Availability(False, "vLLM's environment is not built.", BUILD_HINT)
        if environment.flavour == "gpu" and not list_gpus():
            return Availability(
                False,
                f"{environment.python} holds vLLM for GPUs, and this machine has none.",
                f"{BUILD_HINT} --target DIR, and point SAGE_VLLM_PYTHON at its bin/python",
            )
        return Availability(
            True, f"vLLM {environment.version} ({environment.flavour}), {environment.python}"
        )

    def service(
        self,
        model: str,
        *,
        name: str | None = None,
        port: int | None = None,
        options: EngineOptions | None = None,
    ) -> ServiceSpec:
        """A vLLM server process; see :meth:`EngineDriver.service`."""
        options = options or EngineOptions(context=2048)
        self.require_available()
        environment = find()
        assert environment is not None  # it is available
        files = resolve(model)
        self.require_mode(files)
        on_gpu = environment.flavour == "gpu"
        if options.device == "cuda" and not on_gpu:
            raise ServiceError(
                f"engine 'vllm' cannot run on a GPU: {environment.python} holds its CPU build.",
                hint=f"{BUILD_HINT} --gpu",
            )
        engine_name = name or service_name(files.name)
        url = "http://127.0.0.1:{port}"
        return ServiceSpec(
            name=engine_name,
            kind="engine",
            command=(*_command(environment, files, options, on_gpu),),
            env=_environment(on_gpu),
            ports=(PortClaim.of(SagePorts.LLM, port),),
            ready=Probe(kind="http", target=f"{url}/health"),
            # Loading, conversion and, on GPUs, compilation: minutes are normal.
            start_timeout_s=max(options.start_timeout_s, 600.0),
            probe_period_s=0.5,
            stop_timeout_s=20.0,
            drain=Probe(
                kind="http",
                target=f"{url}/metrics",
                matches=r"(?m)^vllm:num_requests_running\{[^}]*\} 0(\.0)?$",
            ),
            engine=EngineRegistration(
                base_url=f"{url}/v1",
                models=(ServedModel(name=files.name, mode="chat"),),
                driver=self.name,
                device="cuda" if on_gpu else "cpu",
                max_concurrency=options.slots,
            ),
            gpu=(GpuClaim(memory_mib=_gpu_memory_mib(options)),) if on_gpu else (),
        )


def converted_folder(files: ModelFiles) -> Path:
    """Where the safetensors of a GGUF file are kept; its name changes when the file does."""
    status = files.path.stat()
    stamp = f"{files.path}:{status.st_size}:{status.st_mtime_ns}"
    digest = files.sha256 or hashlib.sha256(stamp.encode()).hexdigest()
    return cache_dir() / "converted" / f"{service_name(files.name)}-{digest[:16]}"


def _command(
    environment: VllmEnvironment, files: ModelFiles, options: EngineOptions, on_gpu: bool
) -> list[str]:
    launcher = [str(environment.python), str(Path(vllm_server.__file__).absolute())]
    folder = files.path
    if files.format == "gguf":
        folder = converted_folder(files)
        launcher += ["--gguf", str(files.path), "--converted", str(folder)]
    elif files.format != "safetensors":
        raise ModelNotFoundError(f"vLLM cannot load the {files.format} file {files.path}.")
    arguments = [
        *("--model", str(folder), "--served-model-name", files.name),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--max-model-len", str(options.context), "--max-num-seqs", str(options.slots)),
    ]
    if on_gpu:
        share = _GPU_SHARE
        if options.gpu_memory_mib is not None:
            total = max(gpu.memory_total_mib for gpu in list_gpus())
            share = min(0.95, options.gpu_memory_mib / total)
        arguments += ["--gpu-memory-utilization", f"{share:.3f}"]
    else:
        # Compiling a small model costs more than it gains on a CPU.
        arguments += ["--enforce-eager", "--dtype", "bfloat16"]
    return [*launcher, "--", *arguments, *options.extra]


def _environment(on_gpu: bool) -> dict[str, str]:
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model lies on this machine: a hub that does not answer must not delay the start.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if not on_gpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(_CPU_KV_CACHE_GIB)
    return env


def _gpu_memory_mib(options: EngineOptions) -> int:
    if options.gpu_memory_mib is not None:
        return options.gpu_memory_mib
    return int(max(gpu.memory_total_mib for gpu in list_gpus()) * _GPU_SHARE)
