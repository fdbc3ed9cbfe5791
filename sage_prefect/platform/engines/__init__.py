"""Engine drivers: how to start, probe, drain and stop one kind of model server.

The table below is the only place that lists them; adding one touches no other file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.platform.engines.base import EngineDriver

_PACKAGE = "sage_prefect.platform.engines"

# Name -> "module:class"; loaded when asked for.
DRIVERS: Mapping[str, str] = {
    "vllm": f"{_PACKAGE}.vllm:VllmDriver",
    "llamacpp": f"{_PACKAGE}.llamacpp:LlamaCppDriver",
    "sentence-transformers": f"{_PACKAGE}.sentence_transformers:SentenceTransformersDriver",
    "openai": f"{_PACKAGE}.openai:OpenAIDriver",
}


def driver(name: str) -> EngineDriver:
    """The driver of a name.

    Raises:
        UnknownNameError: there is none; the message lists those there are.
    """
    if name not in DRIVERS:
        raise UnknownNameError("engine driver", name, DRIVERS)
    module, _, attribute = DRIVERS[name].partition(":")
    make: Callable[[], EngineDriver] = getattr(import_module(module), attribute)
    return make()
