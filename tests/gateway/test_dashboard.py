"""The Grafana dashboard asks for metrics and labels that the gateway exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[2] / "deployments" / "grafana" / "sage-gateway.json"
PANELS = json.loads(DASHBOARD.read_text())["panels"]
_METRIC = re.compile(r"\bsage_\w+")
_BY = re.compile(r"\bby \(([^)]*)\)")


async def exported(lab: Any) -> dict[str, set[str]]:
    """Label names by sample name, after requests of every kind that the panels show."""

    async def embed(request: Any) -> None:
        vectors = [
            {"object": "embedding", "index": n, "embedding": [0.5]}
            for n in range(len(request.json["input"]))
        ]
        await request.answer(200, json.dumps({"data": vectors}).encode())

    async def drop(request: Any) -> None:
        request.reset()

    bad, good, vectors = await lab.peer(drop), await lab.peer(), await lab.peer(embed)
    gateway = await lab.gateway(
        lab.engine(bad, "bad"),
        lab.engine(good, "good"),
        lab.engine(vectors, "vectors", models=(lab.embedding_model,)),
        policy="least_outstanding",
    )
    for stream in (False, True, False):
        await gateway.chat(stream=stream)
    gateway.gateway.metrics.batched("vectors", 2)
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{gateway.url}/metrics")).text
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


async def test_every_query_is_of_what_is_exported(lab: Any) -> None:
    samples = await exported(lab)
    asked: set[str] = set()
    for panel in PANELS:
        for target in panel["targets"]:
            names = _METRIC.findall(target["expr"])
            assert names, panel["title"]
            for name in names:
                assert name in samples, f"{panel['title']}: {name}"
                asked.add(name)
            for labels in _BY.findall(target["expr"]):
                wanted = {label.strip() for label in labels.split(",")}
                assert wanted <= set.union(*(samples[name] for name in names)), panel["title"]
    families = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in samples}
    unseen = {name for name in families if name.startswith("sage_gateway")} - {
        re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked
    }
    # Recording has its own log lines; the part before the engine is within the whole overhead.
    assert unseen <= {
        "sage_gateway_recording", "sage_gateway_recorded_events", "sage_gateway_overhead_seconds",
    }  # fmt: skip


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_do_not_overlap(panel: dict[str, Any]) -> None:
    places = [tuple(each["gridPos"].values()) for each in PANELS]
    assert places.count(tuple(panel["gridPos"].values())) == 1
