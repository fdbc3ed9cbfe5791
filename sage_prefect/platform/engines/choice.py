"""Which driver serves a chat model when the user does not say: vLLM where a GPU is."""

from __future__ import annotations

from sage_prefect.platform.engines import driver
from sage_prefect.platform.engines.base import EngineDriver
from sage_prefect.platform.gpus import list_gpus
from sage_prefect.platform.models import resolve


def choose_llm_driver(model: str) -> tuple[EngineDriver, str]:
    """The driver for ``model``, and the reason in a sentence.

    vLLM where a GPU and vLLM's environment are, else llama.cpp. A model that llama.cpp cannot
    load (not GGUF) goes to vLLM also without a GPU.

    Raises:
        ModelNotFoundError: the model is not on this machine.
        ServiceError: no driver that could load it can run; says why.
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
        return _checked(llamacpp), reason.strip()
    return _checked(llamacpp), "llamacpp, because this machine has no GPU"


def _checked(chosen: EngineDriver) -> EngineDriver:
    chosen.require_available()
    return chosen
