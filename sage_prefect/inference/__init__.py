"""L1: the inference protocol's types and the client that speaks it.

Importing this package is cheap; the names below load their modules (and httpx) when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_prefect.inference.async_client import AsyncInferenceClient
    from sage_prefect.inference.client import UnifiedInferenceClient
    from sage_prefect.inference.config import ClientConfig
    from sage_prefect.inference.protocol import CallContext, ChatChunk, ChatResult, Usage

__all__ = [
    "AsyncInferenceClient",
    "CallContext",
    "ChatChunk",
    "ChatResult",
    "ClientConfig",
    "UnifiedInferenceClient",
    "Usage",
]

_MODULES = {
    "AsyncInferenceClient": "async_client",
    "CallContext": "protocol",
    "ChatChunk": "protocol",
    "ChatResult": "protocol",
    "ClientConfig": "config",
    "UnifiedInferenceClient": "client",
    "Usage": "protocol",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
