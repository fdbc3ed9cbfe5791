"""docs/gateway.md names every route, metric, setting, policy and error code that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from sage_gateway.routes import INFERENCE_ROUTES
from sage_prefect.control_plane.strategies import POLICIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
SOURCES = [
    *(ROOT / "gateway" / "sage_gateway").glob("*.py"),
    *(ROOT / "sage_prefect" / "control_plane").glob("*.py"),
]


async def test_routes_and_metrics(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    await gateway.chat(stream=True)
    described = (await gateway.client.get("/openapi.json")).json()["paths"]
    for path in (*INFERENCE_ROUTES, *gateway.app._plain, *described):
        assert f"{path}`" in PAGE, path
    text = (await gateway.client.get("/metrics")).text
    for metric in set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)):
        if not metric.endswith("_created"):
            assert f"`{metric}`" in PAGE, metric


def test_policies() -> None:
    for name in POLICIES:
        assert f"| `{name}` |" in PAGE


def error_codes() -> set[str]:
    """Every constant ``code=...``, and the codes of the control plane's refusals."""
    codes = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    codes.add(keyword.value.value)
            named = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if named == "refuse" and len(node.args) > 3 and isinstance(node.args[3], ast.Constant):
                codes.add(node.args[3].value)
    return codes - {None}


def test_error_codes() -> None:
    codes = error_codes()
    assert {"queue_full", "invalid_json", "model_not_found"} <= codes
    missing = {code for code in codes if f"`{code}`" not in PAGE and f'"{code}"' not in PAGE}
    assert not missing


@pytest.mark.parametrize(
    ("section", "file"),
    [
        ("queue", "config"),
        ("timeouts", "config"),
        ("server", "config"),
        ("replicas", "config"),
        ("health", "config"),
        ("recording", "recording"),
        ("tracing", "config_tracing"),
        ("keys", "config_tenants"),
    ],
)
def test_settings(section: str, file: str) -> None:
    source = (ROOT / "gateway" / "sage_gateway" / f"{file}.py").read_text()
    body = source.partition(f'sage.section("{section}")')[2].partition("refuse_unread")[0]
    keys = re.findall(r'\.(?:integer|seconds|number|text|choice|flag)\(\s*"(\w+)"', body)
    assert keys
    for key in keys:
        assert f"`sage_settings.{section}.{key}`" in PAGE


def test_what_is_said_of_engines() -> None:
    source = (ROOT / "gateway" / "sage_gateway" / "config_models.py").read_text()
    keys = re.findall(r'\binfo\.(?:text|choice|integer|number|flag|section)\(\s*"(\w+)"', source)
    assert {"id", "takes_priority", "profile"} <= set(keys)
    for key in keys:
        assert f"`model_list[].model_info.{key}`" in PAGE, key
