"""Which driver serves a chat model when the user does not say: vLLM where a GPU is."""

from __future__ import annotations

import logging

from sage_prefect.platform.engines import driver
from sage_prefect.platform.engines.base import EngineDriver, EngineOptions
from sage_prefect.platform.gpus import list_gpus
from sage_prefect.platform.models import resolve
from sage_prefect.platform.service import ServiceSpec

log = logging.getLogger(__name__)


def choose_llm_driver(model: str) -> tuple[EngineDriver, str]:
    """The driver for ``model``, and the reason in a sentence.

    vLLM where a GPU and vLLM's environment are, else llama.cpp. A model that llama.cpp cannot
    load (not GGUF) goes to vLLM also without a GPU.

    Raises:
        ModelNotFoundError: the model is not on this machine.
        ServiceError: only vLLM could load the model, and it cannot run here.
    """
    vllm, llamacpp = driver("vllm"), driver("llamacpp")
    files = resolve(model)
    found, gpus = vllm.availability(), list_gpus()
    if files.format != "gguf":
        vllm.require_available()
        return vllm, f"vllm, because llama.cpp does not load {files.format} models"
    if gpus and found.ok:
        return vllm, f"vllm, because this machine has a GPU ({gpus[0].name})"
    if gpus:
        reason = f"llamacpp, although this machine has a GPU: {found.detail} {found.hint or ''}"
        return llamacpp, reason.strip()
    return llamacpp, "llamacpp, because this machine has no GPU"


def llm_service(
    model: str,
    engine: str = "auto",
    *,
    name: str | None = None,
    port: int | None = None,
    options: EngineOptions | None = None,
) -> ServiceSpec:
    """The service that serves a chat model; arguments as in :meth:`EngineDriver.service`.

    Args:
        engine: a driver's name, or ``"auto"``.

    Raises:
        UnknownNameError: no such driver.
        ModelNotFoundError: the model is not on this machine.
        ServiceError: the engine cannot run here.
    """
    if engine == "auto":
        chosen, reason = choose_llm_driver(model)
        log.info("engine of %s: %s", model, reason)
    else:
        chosen = driver(engine)
    return chosen.service(model, name=name, port=port, options=options)


def embedding_service(
    model: str,
    *,
    name: str | None = None,
    port: int | None = None,
    options: EngineOptions | None = None,
) -> ServiceSpec:
    """The service that serves an embedding model; arguments and errors as above."""
    chosen = driver("sentence-transformers")
    return chosen.service(model, name=name, port=port, options=options)
