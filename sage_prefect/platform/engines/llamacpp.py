"""llama.cpp's own HTTP server, through ``xllamacpp``: the default LLM engine on CPU machines."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from typing import ClassVar

from sage_prefect.common.errors import ModelNotFoundError
from sage_prefect.common.ports import SagePorts
from sage_prefect.platform.engines.base import (
    Availability,
    EngineDriver,
    EngineOptions,
    service_name,
)
from sage_prefect.platform.models import resolve
from sage_prefect.platform.service import (
    EngineRegistration,
    PortClaim,
    Probe,
    ServedModel,
    ServiceSpec,
)

# How long OpenMP threads spin at a barrier before they sleep. Measured with SmolLM2 on two shared
# cores, decode tokens/s idle | beside one busy process: default 145 | 3 to 39 (spinning threads
# keep the other from the core), 1000: 137 | 27 to 35, OMP_WAIT_POLICY=passive: 49 | 39 to 58.
_SPIN = "1000"


class LlamaCppDriver(EngineDriver):
    """Serves GGUF files; starts in seconds."""

    name = "llamacpp"
    modes = frozenset({"chat"})
    metrics: ClassVar = {
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generated_tokens": "llamacpp:tokens_predicted_total",
    }

    def availability(self) -> Availability:
        """Whether xllamacpp is installed."""
        if importlib.util.find_spec("xllamacpp") is None:
            return Availability(
                False,
                "the package 'xllamacpp' is not installed.",
                "Install it with: pip install 'sage-prefect[llamacpp]'",
            )
        return Availability(True, f"xllamacpp {importlib.metadata.version('xllamacpp')}")

    def service(
        self,
        model: str,
        *,
        name: str | None = None,
        port: int | None = None,
        options: EngineOptions | None = None,
    ) -> ServiceSpec:
        """A llama.cpp server process; see :meth:`EngineDriver.service`."""
        options = options or EngineOptions()
        self.require_available()
        files = resolve(model)
        self.require_mode(files)
        if files.format != "gguf":
            raise ModelNotFoundError(
                f"model {files.name!r} is in {files.format} format; llama.cpp loads GGUF files.",
                hint="Use a .gguf file, or serve it with --engine vllm.",
            )
        threads = options.threads or available_cores()
        url = "http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "sage_prefect.platform.engines.llamacpp_server"),
            *("--model", str(files.path), "--alias", files.name, "--port", "{port}"),
            *("--slots", str(options.slots), "--ctx", str(options.context)),
            *("--threads", str(threads), "--device", options.device, *options.extra),
        ]
        return ServiceSpec(
            name=name or service_name(files.name),
            kind="engine",
            command=tuple(command),
            env=_environment(),
            ports=(PortClaim.of(SagePorts.LLM, port),),
            # 503 while the model loads.
            ready=Probe(kind="http", target=f"{url}/health"),
            start_timeout_s=options.start_timeout_s,
            stop_timeout_s=5.0,
            drain=Probe(kind="http", target=f"{url}/slots", absent=r'"is_processing"\s*:\s*true'),
            engine=EngineRegistration(
                base_url=f"{url}/v1",
                models=(ServedModel(name=files.name, mode="chat"),),
                driver=self.name,
                device="cpu" if options.device != "cuda" else "cuda",
                max_concurrency=options.slots,
            ),
        )


def _environment() -> dict[str, str]:
    # On a fatal error ggml would attach a debugger and print pages; the message is enough.
    env = {"GGML_NO_BACKTRACE": "1"}
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        env["GOMP_SPINCOUNT"] = _SPIN
    return env


def available_cores() -> int:
    """Cores that this process may use (containers and taskset count)."""
    return len(os.sched_getaffinity(0))
