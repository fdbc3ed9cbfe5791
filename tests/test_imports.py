"""What an import pulls in: the front doors stay light, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "prefect",
    "dask",
    "distributed",
    "torch",
    "transformers",
    "litellm",
    "sentence_transformers",
)

# What each front door may not pull in beside HEAVY.
DOORS = {
    "sage_prefect": ("fastapi", "httpx", "pyarrow", "numpy", "yaml"),
    "sage_prefect.cli.main": ("fastapi", "pyarrow"),
    "sage_prefect.common.settings": ("fastapi", "httpx", "pyarrow"),
    "sage_prefect.control_plane": ("fastapi", "httpx", "asyncio"),
    "sage_prefect.inference.client": ("fastapi", "pyarrow"),
    "sage_gateway": ("fastapi",),
    # Prefect's server, workers and CLI all load the blocks at their start; Prefect itself is there.
    "sage_blocks": ("dask", "distributed", "torch"),
}


def modules_after(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter that ran ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("door", sorted(DOORS))
def test_a_front_door_is_light(door: str) -> None:
    forbidden = {*DOORS[door], *(() if door == "sage_blocks" else HEAVY)}
    assert not modules_after(f"import {door}") & forbidden


def test_public_names_load_on_first_use() -> None:
    loaded = modules_after(
        "import sage_prefect\n"
        "for name in sage_prefect.__all__: getattr(sage_prefect, name)\n"
        "assert set(sage_prefect.__all__) <= set(dir(sage_prefect))"
    )
    assert not loaded & set(HEAVY)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import sage_prefect

    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = sage_prefect.Pipelines
