"""The experiments' own logic; their servers and long runs are in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sage_bench.documentation_chunks import documentation_chunks
from sage_bench.experiment import RunConfig
from sage_bench.experiments import vectors
from sage_bench.experiments.quickstart import step_times
from sage_bench.experiments.vector_indexes import (
    Agreement,
    NumpyFlat,
    Truth,
    true_neighbours,
    unit_vectors,
)
from sage_prefect.common.errors import BenchmarkError


def test_unit_vectors_are_the_same_for_a_seed() -> None:
    first, again = unit_vectors(1, 50, 8, 0), unit_vectors(1, 50, 8, 0)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, unit_vectors(2, 50, 8, 0))
    for clusters in (0, 3):
        assert np.linalg.norm(unit_vectors(1, 50, 8, clusters), axis=1) == pytest.approx(1, 1e-5)


def test_true_neighbours_do_not_depend_on_the_block() -> None:
    base, queries = unit_vectors(1, 300, 16, 0), unit_vectors(2, 10, 16, 0)
    expected = np.argsort(-(queries.astype(float) @ base.astype(float).T), axis=1)[:, :7]
    for block in (1, 64, 1000):
        assert np.array_equal(true_neighbours(base, queries, 7, block), expected)


def test_only_what_float32_cannot_tell_apart_may_change_places() -> None:
    base, queries = unit_vectors(1, 300, 16, 0), unit_vectors(2, 4, 16, 0)
    base[7] = base[3]  # the same vector twice, whichever comes back is right
    truth = Truth(base, queries, 5)
    assert truth.agreement(truth.ids) == Agreement(1.0, 1.0)
    swapped = np.where(truth.ids == 3, 7, np.where(truth.ids == 7, 3, truth.ids))
    assert truth.agreement(swapped).exact == 1.0
    wrong = truth.ids.copy()
    wrong[0, 4] = np.argmin(base.astype(float) @ queries[0].astype(float))
    assert truth.agreement(wrong) == Agreement(0.95, 0.95)
    repeated = truth.ids.copy()
    repeated[0, 1] = repeated[0, 0]
    assert truth.agreement(repeated).exact == 0.75
    # Fewer queries than there are: a check of batch 1 takes a part of them.
    assert truth.agreement(truth.ids[:2]).exact == 1.0


def test_vectors_refuses_an_index_that_is_not_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = vectors.Library("wrong", "test_experiments:WrongIndex", "numpy")
    monkeypatch.setattr(vectors, "LIBRARIES", (wrong,))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = {"count": 1000, "dim": 4, "batches": "1000", "threads": "1"}
    with pytest.raises(BenchmarkError, match=r"wrong with \{\} gave 0\.\d+ of its answers"):
        vectors.run(RunConfig(out=tmp_path, options=options))


class WrongIndex(NumpyFlat):
    """Leaves out the last component."""

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        queries = queries.copy()
        queries[:, -1] = 0
        return super().search(queries, k)


def test_step_times_of_quickstart() -> None:
    output = "[1/2] looking\n      fine (1 s)\n[2/2] packages\n      pip talks\n      done (93 s)\n"
    assert step_times(output) == {"looking": 1, "packages": 93}


def test_documentation_chunks_are_real_text_in_the_seeds_order() -> None:
    modules = ["argparse", "json", "pathlib"]
    chunks = documentation_chunks(100, seed=1, modules=modules)
    assert len(set(chunks.texts)) > 90
    assert chunks.sha256 == documentation_chunks(100, seed=1, modules=modules).sha256
    assert chunks.sha256 != documentation_chunks(100, seed=2, modules=modules).sha256
    assert chunks.sizes()["tokens"]["p95"] <= 256
    with pytest.raises(BenchmarkError, match="--set chunks="):
        documentation_chunks(10_000_000, seed=1, modules=modules)
