"""SAGE on Prefect: LLM pipelines and model serving on mixed CPU/GPU machines.

The names below load on first use (PEP 562), so that ``import sage_prefect`` stays cheap and
pulls in neither Prefect, Dask nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Pipeline": "sage_prefect.kernel.pipeline",
    "Resources": "sage_prefect.kernel.resources",
    "operator": "sage_prefect.kernel.operator",
    "UnifiedInferenceClient": "sage_prefect.inference.client",
}

__all__ = ["Pipeline", "Resources", "UnifiedInferenceClient", "__version__", "operator"]

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient
    from sage_prefect.kernel.operator import operator
    from sage_prefect.kernel.pipeline import Pipeline
    from sage_prefect.kernel.resources import Resources


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
