"""An embedding model served from the GPU, from the CPU and from both, behind the real gateway.

Ingestion (calls of 64 texts, band ``batch``, closed loop) runs beside queries (one text, band
``interactive``, at a fixed rate). With both engines the gateway's policy ``hybrid`` decides.
"""

from __future__ import annotations

import collections
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from sage_bench.serving import Gateway, embedding_entry, embedding_server

MODEL = "embedder"
_KEY = "sk-gpu-check"
_INGESTERS, _CALL = 12, 64
_QUERIES_PER_S, _QUERIERS = 40.0, 16  # each asks every 0.4 s: an open loop up to that wait


def measure(model: Path, texts: Sequence[str], seconds: float = 10.0) -> dict[str, Any]:
    """What each choice of engines gives, each measured twice, in the order A B C C B A."""
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        with (
            embedding_server(str(model), "cuda", _folder(home / "gpu-logs")) as gpu,
            embedding_server(str(model), "cpu", _folder(home / "cpu-logs")) as cpu,
        ):
            entries = {
                "GPU": {**embedding_entry(MODEL, gpu), "device": "cuda"},
                "CPU": {**embedding_entry(MODEL, cpu), "device": "cpu"},
            }
            for entry in entries.values():
                entry["litellm_params"]["model"] = f"openai/{model.name}"
                entry["model_info"]["device"] = entry.pop("device")
            order = (("GPU",), ("CPU",), ("GPU", "CPU"))
            for number, names in enumerate((*order, *reversed(order))):
                folder = _folder(home / f"gateway-{number}")
                models = [entries[name] for name in names]
                with Gateway(models, key=_KEY, home=folder, logs=folder) as gateway:
                    found[" + ".join(names)].append(_load(gateway.url, texts, seconds))
    return dict(found)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _load(url: str, texts: Sequence[str], seconds: float) -> dict[str, Any]:
    until = time.perf_counter() + seconds
    embedded: collections.Counter[str] = collections.Counter()
    waits: list[float] = []
    failed: list[str] = []

    def client(band: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {_KEY}", "x-sage-band": band}
        return httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False)

    def ingest(first: int) -> None:
        with client("batch") as http:
            at = first
            while time.perf_counter() < until:
                part = [texts[(at + n) % len(texts)] for n in range(_CALL)]
                at += _CALL
                answer = http.post("/v1/embeddings", json={"model": MODEL, "input": part})
                if answer.status_code == 200:
                    embedded[answer.headers["x-sage-engine"]] += len(answer.json()["data"])
                else:
                    failed.append(answer.text[:200])

    def query(first: int) -> None:
        with client("interactive") as http:
            due, number = time.perf_counter() + first / _QUERIES_PER_S, first
            while due < until:
                time.sleep(max(0.0, due - time.perf_counter()))
                body = {"model": MODEL, "input": texts[number % len(texts)][:80]}
                answer = http.post("/v1/embeddings", json=body)
                waits.append(time.perf_counter() - due)  # from the time it was due
                if answer.status_code != 200:
                    failed.append(answer.text[:200])
                due += _QUERIERS / _QUERIES_PER_S
                number += _QUERIERS

    threads = [threading.Thread(target=ingest, args=(n * 977,)) for n in range(_INGESTERS)]
    threads += [threading.Thread(target=query, args=(n,)) for n in range(_QUERIERS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    return {
        "texts_per_s": sum(embedded.values()) / took,
        "by_engine": dict(embedded),
        "query_p50_ms": statistics.median(waits) * 1e3,
        "query_p99_ms": statistics.quantiles(waits, n=100)[98] * 1e3,
        "queries": len(waits),
        "failed": failed[:5],
    }
