"""L4: the only package of the library that imports Prefect and Dask.

The names below load on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "cluster_task_runner": "sage_prefect.orchestration.pipeline_flow",
    "run_in_flow": "sage_prefect.orchestration.plan_execution",
}

if TYPE_CHECKING:
    from sage_prefect.orchestration.pipeline_flow import cluster_task_runner as cluster_task_runner
    from sage_prefect.orchestration.plan_execution import run_in_flow as run_in_flow


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
