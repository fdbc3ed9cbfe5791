"""VectorIndex against a float64 oracle, its arguments, payload and changes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from sage_prefect import _native
from sage_prefect.common.errors import VectorIndexError
from sage_prefect.middleware import VectorIndex

METRICS = ("cosine", "ip", "l2")
# storage, keep_vectors
STORAGES = (
    ("float32", True),
    ("int8", True),
    ("bfloat16", True),
    ("int8", False),
    ("bfloat16", False),
)
Stored = tuple[str, bool]


def make(dim: int, metric: str = "cosine", stored: Stored = ("float32", True)) -> VectorIndex:
    return VectorIndex(dim, metric=metric, storage=stored[0], keep_vectors=stored[1])  # type: ignore[arg-type]


def exact_scores(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], metric: str
) -> NDArray[np.float64]:
    """[m, n]: similarities, or squared distances for l2."""
    x, q = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return ((q[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    dots = q @ x.T
    if metric == "ip":
        return dots
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)[None, :]
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


def top_k(
    vectors: NDArray[np.float32],
    ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    metric: str,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """ids and scores [m, k], ties by the smaller id, filled with -1 and NaN."""
    found = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), np.nan)
    if len(vectors):
        for row, scores in enumerate(exact_scores(vectors, queries, metric)):
            order = np.lexsort((ids, scores if metric == "l2" else -scores))[:k]
            found[row, : len(order)] = ids[order]
            best[row, : len(order)] = scores[order]
    return found, best


def check_search(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
    exact_ids: bool,
) -> None:
    got_ids, got = index.search(queries, k)
    if not index.keep_vectors:
        # The promise is about what is stored: it is near what came, and searched exactly.
        stored = index.vectors(ids)
        unit = np.abs(vectors).max(axis=1, keepdims=True) if len(vectors) else np.zeros((0, 1))
        close = unit / (254 if index.storage == "int8" else 256) * (1 + 1e-5) + 2e-36
        assert (np.abs(stored.astype(np.float64) - vectors) <= close).all()
        vectors = stored
    expected_ids, expected = top_k(vectors, ids, queries, index.metric, k)
    assert got_ids.shape == got.shape == (len(queries), k)
    assert got_ids.dtype == np.int64
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got_ids == -1, expected_ids == -1)
    # Dot products cancel: both sides' float64 sums round relative to the norms. Distances do not.
    noise = 0.0
    if index.metric != "l2" and len(vectors) and len(queries):
        longest = [
            float(np.linalg.norm(x.astype(np.float64), axis=1).max()) for x in (vectors, queries)
        ]
        noise = 1e-14 * index.dim * (1.0 if index.metric == "cosine" else longest[0] * longest[1])
    # Scores beyond float32 are infinite.
    got, limited = (np.clip(x.astype(np.float64), -3.4e38, 3.4e38) for x in (got, expected))
    np.testing.assert_allclose(got, limited, rtol=1e-6, atol=max(noise, 1e-44))
    if exact_ids:
        np.testing.assert_array_equal(got_ids, expected_ids)
    by_id = {int(i): row for row, i in enumerate(ids)}
    for row in range(len(queries)):
        here = [int(i) for i in got_ids[row] if i >= 0]
        assert len(set(here)) == len(here)
        if not here:
            continue
        true = exact_scores(vectors[[by_id[i] for i in here]], queries[row : row + 1], index.metric)
        slack = noise + 1e-12 * np.abs(expected[row, : len(here)])
        if index.metric == "l2":
            assert (true[0] <= expected[row, : len(here)] + slack).all()
        else:
            assert (true[0] >= expected[row, : len(here)] - slack).all()


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SAGE_NATIVE_ISA", request.param)
    return str(request.param)


@pytest.fixture(params=STORAGES, ids=lambda stored: f"{stored[0]}{'' if stored[1] else '-alone'}")
def stored(request: pytest.FixtureRequest) -> Stored:
    return request.param  # type: ignore[no-any-return]


# -- results ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 5, 16, 31, 384, 1100])
def test_agrees_with_float64_on_every_tier(isa: str, metric: str, dim: int, stored: Stored) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((700, dim)).astype(np.float32)
    ids = np.arange(700, dtype=np.int64)
    index = make(dim, metric, stored)
    index.add(vectors)
    assert index.stats()["isa"] == isa
    assert (index.storage, index.keep_vectors) == stored
    for m in (1, 3, 12, 37):  # row by row, half a panel, whole panels
        queries = rng.standard_normal((m, dim)).astype(np.float32)
        check_search(index, vectors, ids, queries, 7, exact_ids=dim > 1 and stored[1])


@pytest.mark.parametrize("metric", METRICS)
def test_all_tiers_and_threads_give_the_same_bits(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, 48)).astype(np.float32)
    queries = rng.standard_normal((70, 48)).astype(np.float32)
    results = []
    for isa in _native.available_isas():
        monkeypatch.setenv("SAGE_NATIVE_ISA", isa)
        for stored in STORAGES[:3]:  # codes with bounds give the very same as float32
            index = make(48, metric, stored)
            index.add(vectors)
            results += [index.search(queries, 20, threads=threads) for threads in (1, 2, 5)]
    for ids, scores in results[1:]:
        np.testing.assert_array_equal(ids, results[0][0])
        np.testing.assert_array_equal(scores, results[0][1])


NASTY = [0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e-45, 1e-40, -1e-30, 1e-20, 1e10, -1e20, 3e38]


@settings(deadline=None, max_examples=400)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 18), st.integers(1, 19)),
    k=st.integers(1, 35),
    metric=st.sampled_from(METRICS),
    tier=st.sampled_from(_native.available_isas()),
    stored=st.sampled_from(STORAGES),
    plain=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_finite_values(
    shape: tuple[int, int, int],
    k: int,
    metric: str,
    tier: str,
    stored: Stored,
    plain: float,
    seed: int,
) -> None:
    """Denormals, huge norms, zeros and signs, with a share of ordinary values among them."""
    n, m, dim = shape
    rng = np.random.default_rng(seed)
    palette = rng.choice(NASTY, 3)

    def draw(rows: int) -> NDArray[np.float32]:
        nasty = rng.choice(palette, (rows, dim))
        usual = rng.standard_normal((rows, dim))
        return np.where(rng.random((rows, dim)) < plain, usual, nasty).astype(np.float32)

    vectors, queries = draw(n), draw(m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGE_NATIVE_ISA", tier)
        index = make(dim, metric, stored)
    index.add(vectors)
    check_search(index, vectors, np.arange(n), queries, k, exact_ids=False)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_smaller_id(metric: str, stored: Stored) -> None:
    vectors = np.tile(np.array([[3.0, 4.0]], np.float32), (5000, 1))
    ids = np.random.default_rng(1).permutation(5000).astype(np.int64)
    index = make(2, metric, stored)
    index.add(vectors, ids=ids)
    for m in (1, 20):
        found, _ = index.search(np.tile(np.array([[1.0, 2.0]], np.float32), (m, 1)), 9, threads=2)
        np.testing.assert_array_equal(found, np.tile(np.arange(9), (m, 1)))


def test_near_ties_are_ranked_as_float64_ranks_them(stored: Stored) -> None:
    """Neighbours that differ in the last bit of one value, far below float32 sums' rounding."""
    base = np.random.default_rng(2).standard_normal(256).astype(np.float32)
    vectors = np.tile(base, (600, 1))
    for row in range(600):
        vectors[row, row % 256] = np.nextafter(
            vectors[row, row % 256], np.float32(9 if row % 2 else -9), dtype=np.float32
        )
    for metric in METRICS:
        index = make(256, metric, stored)
        index.add(vectors)
        check_search(index, vectors, np.arange(600), base[None], 50, exact_ids=False)


@pytest.mark.parametrize("stored", STORAGES[:3])
def test_distances_survive_cancellation(stored: Stored) -> None:
    """|q|^2 + |x|^2 - 2 q.x in float32 would be noise here."""
    base = np.full((1, 64), 1000.0, np.float32)
    vectors = base + np.arange(50, dtype=np.float32)[:, None] * np.float32(2**-13)
    index = make(64, "l2", stored)
    index.add(vectors)
    ids, scores = index.search(base, 50)
    np.testing.assert_array_equal(ids[0], np.arange(50))
    np.testing.assert_allclose(scores[0], 64 * (np.arange(50) * 2.0**-13) ** 2, rtol=1e-6)


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_the_greatest_numbers_have_codes(storage: str) -> None:
    greatest = float(np.finfo(np.float32).max)
    index = VectorIndex(2, metric="ip", storage=storage, keep_vectors=False)
    ids = index.add(np.array([[greatest, -greatest], [1, 1]], np.float32))
    stored = index.vectors(ids)
    assert np.isfinite(stored).all()
    np.testing.assert_allclose(stored[0], [greatest, -greatest], rtol=0.01)
    assert index.search(np.array([1, 0], np.float32), 1)[0].tolist() == [[0]]


def test_zero_vectors_have_cosine_zero(stored: Stored) -> None:
    index = make(3, stored=stored)
    index.add(np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0]], np.float32))
    ids, scores = index.search(np.array([[2, 0, 0], [0, 0, 0]], np.float32), 3)
    assert ids.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert scores.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_empty_index_and_k_beyond_what_exists(stored: Stored) -> None:
    index = make(4, "l2", stored)
    ids, scores = index.search(np.zeros(4, np.float32), 3)
    assert ids.tolist() == [[-1, -1, -1]]
    assert np.isnan(scores).all()
    index.add(np.zeros((2, 4), np.float32))
    ids, scores = index.search(np.zeros((1, 4), np.float32), 4)
    assert ids.tolist() == [[0, 1, -1, -1]]
    assert scores[0, :2].tolist() == [0, 0]
    assert np.isnan(scores[0, 2:]).all()
    assert index.search(np.zeros((0, 4), np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("stored", "most"), [(STORAGES[0], 20), (STORAGES[1], 900), (STORAGES[2], 30)]
)
def test_few_rows_are_scored_twice(stored: Stored, most: int) -> None:
    """The bounds do their work: float64 scoring is for few rows, even of vectors without any
    structure, all of them nearly at right angles."""
    rng = np.random.default_rng(3)
    index = make(384, stored=stored)
    index.add(rng.standard_normal((20_000, 384)).astype(np.float32))
    index.search(rng.standard_normal((40, 384)).astype(np.float32), 10, threads=1)
    stats = index.stats()
    assert stats["queries"] == 40
    assert stats["rows_scanned"] == 40 * 20_000
    assert stats["rows_rescored"] < 40 * most


@settings(deadline=None, max_examples=150)
@given(
    dim=st.integers(1, 70),
    scale=st.sampled_from([1e-38, 1e-30, 1e-3, 1.0, 1e3, 1e15, 1e30]),
    metric=st.sampled_from(METRICS),
    stored=st.sampled_from(STORAGES[1:3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_find_what_float32_finds(
    dim: int, scale: float, metric: str, stored: Stored, seed: int
) -> None:
    """Clusters so tight that codes cannot tell their members apart, at any scale."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((3, dim)) * scale
    vectors = centres[rng.integers(0, 3, 400)] * (1 + 1e-4 * rng.standard_normal((400, dim)))
    queries = centres[rng.integers(0, 3, 9)] * (1 + 1e-4 * rng.standard_normal((9, dim)))
    results = []
    for kind in (STORAGES[0], stored):
        index = make(dim, metric, kind)
        index.add(vectors.astype(np.float32))
        results.append(index.search(queries.astype(np.float32), 12))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_without_byte_products_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way for CPUs without VNNI; which of both runs is chosen once per process."""
    code = (
        "import numpy as np; from sage_prefect.middleware import VectorIndex\n"
        "r = np.random.default_rng(4); i = VectorIndex(100, storage='int8')\n"
        "i.add(r.standard_normal((3000, 100)).astype(np.float32))\n"
        "found = i.search(r.standard_normal((40, 100)).astype(np.float32), 9)\n"
        "print(found[0].tolist(), found[1].tolist())"
    )
    said = []
    for without in ("0", "1"):
        env = {**os.environ, "SAGE_NATIVE_NO_VNNI": without}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, timeout=120
        )
        said.append(ran.stdout)
    assert said[0] == said[1] != b""


def test_codes_take_less_memory() -> None:
    vectors = np.random.default_rng(5).standard_normal((30_000, 384)).astype(np.float32)
    sizes = {}
    for stored in STORAGES:
        index = make(384, stored=stored)
        index.add(vectors)
        index.compact()
        sizes[stored] = index.memory_bytes / len(vectors)
    assert sizes["int8", False] < 0.35 * sizes["float32", True]
    assert sizes["bfloat16", False] < 0.7 * sizes["float32", True]
    assert sizes["int8", True] < 1.35 * sizes["float32", True]


# -- changes ------------------------------------------------------------------------------


class Changes(RuleBasedStateMachine):
    """Any order of add, upsert, remove, compact, save and open, beside a dict as the model."""

    small = st.integers(-3, 3).map(float)  # integers: float64 sums are exact, so ids must match

    @initialize(
        metric=st.sampled_from(METRICS),
        dim=st.integers(1, 6),
        stored=st.sampled_from(STORAGES[:3]),
    )
    def start(self, metric: str, dim: int, stored: Stored) -> None:
        self.index = make(dim, metric, stored)
        self.model: dict[int, tuple[list[float], str | None]] = {}
        self.next_id = 0

    def rows(self, data: st.DataObject, most: int = 12) -> NDArray[np.float32]:
        row = st.lists(self.small, min_size=self.index.dim, max_size=self.index.dim)
        drawn = data.draw(st.lists(row, min_size=1, max_size=most))
        return np.array(drawn, np.float32).reshape(-1, self.index.dim)

    def put(
        self, ids: NDArray[np.int64], rows: NDArray[np.float32], tags: list[str] | None
    ) -> None:
        for at, id in enumerate(ids.tolist()):
            self.model.pop(id, None)
            self.model[id] = (rows[at].tolist(), tags[at] if tags else None)
            self.next_id = max(self.next_id, id + 1)

    @rule(data=st.data(), tagged=st.booleans())
    def add(self, data: st.DataObject, tagged: bool) -> None:
        rows = self.rows(data)
        tags = [f"t{self.next_id + i}" for i in range(len(rows))] if tagged else None
        ids = self.index.add(rows, payload=[{"tag": t} for t in tags] if tags else None)
        assert ids.tolist() == list(range(self.next_id, self.next_id + len(rows)))
        self.put(ids, rows, tags)

    @rule(data=st.data())
    def upsert(self, data: st.DataObject) -> None:
        rows = self.rows(data, most=5)
        unique = st.lists(st.integers(0, 40), min_size=len(rows), max_size=len(rows), unique=True)
        ids = np.array(data.draw(unique), np.int64)
        self.index.upsert(rows, ids, payload=[{"tag": f"u{i}"} for i in ids])
        self.put(ids, rows, [f"u{i}" for i in ids])

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=8))
            assert self.index.remove(np.array(gone, np.int64)) == len(set(gone))
            for id in gone:
                self.model.pop(id, None)

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert self.index.stats()["removed"] == 0

    @rule(data=st.data(), k=st.integers(1, 20), m=st.sampled_from([1, 3, 20]))
    def search(self, data: st.DataObject, k: int, m: int) -> None:
        queries = np.resize(self.rows(data), (m, self.index.dim))
        ids = np.array(list(self.model), np.int64)
        vectors = np.array([row for row, _ in self.model.values()], np.float32)
        vectors = vectors.reshape(-1, self.index.dim)
        exact = self.index.metric != "cosine"  # quotients round
        check_search(self.index, vectors, ids, queries, k, exact_ids=exact)

        allowed = data.draw(st.lists(st.integers(0, 60), max_size=20))
        keep = np.isin(ids, allowed)
        expected, _ = top_k(vectors[keep], ids[keep], queries, self.index.metric, k)
        by_ids, _ = self.index.search(queries, k, allow=np.array(allowed, np.int64))
        mask = np.zeros(50, np.bool_)
        mask[[i for i in allowed if i < 50]] = True
        by_mask, _ = self.index.search(queries, k, allow=mask)
        if exact:
            np.testing.assert_array_equal(by_ids, expected)
        assert set(by_ids.ravel().tolist()) - {-1} <= set(ids[keep].tolist())
        assert np.count_nonzero(by_ids >= 0) == m * min(k, int(keep.sum()))
        below = ids[keep & (ids < 50)]
        assert np.count_nonzero(by_mask >= 0) == m * min(k, len(below))
        assert set(by_mask.ravel().tolist()) - {-1} <= set(below.tolist())

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "model"):
            return
        assert len(self.index) == len(self.model)
        assert sorted(self.index.ids.tolist()) == sorted(self.model)
        ids = np.array(list(self.model), np.int64)
        expected = np.array([row for row, _ in self.model.values()], np.float32)
        np.testing.assert_array_equal(self.index.vectors(ids), expected.reshape(-1, self.index.dim))
        table = self.index.payload(ids)
        tags = [tag for _, tag in self.model.values()]
        if table.num_columns:
            assert table.column("tag").to_pylist() == tags
        else:
            assert set(tags) <= {None}


TestChanges = Changes.TestCase
TestChanges.settings = settings(deadline=None, max_examples=40, stateful_step_count=20)


def test_auto_ids_go_on_after_the_greatest() -> None:
    index = VectorIndex(1)
    row = np.ones((1, 1), np.float32)
    assert index.add(row, ids=np.array([41])).tolist() == [41]
    assert index.add(row).tolist() == [42]
    index.remove([42])
    assert index.add(row).tolist() == [43]
    assert 42 not in index
    assert 43 in index
    index.add(row, ids=np.array([2**63 - 2]))
    with pytest.raises(ValueError, match="no ids are left"):
        index.add(row)


def test_searches_beside_changes() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((256, 32)).astype(np.float32)
    index = VectorIndex(32)
    index.add(vectors)
    stop = threading.Event()
    failures: list[BaseException] = []

    def search() -> None:
        try:
            while not stop.is_set():
                ids, scores = index.search(vectors[:9], 5, threads=2)
                assert (ids >= 0).all()
                assert (scores[:, 0] > 0.999).all()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(40):
        added = index.add(vectors, payload=[{"turn": turn}] * 256)
        index.remove(added[:200])
        if turn % 9 == 0:
            index.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(index) == 256 + 40 * 56


# -- arrays that come in ------------------------------------------------------------------


def test_arrow_vectors_and_slices() -> None:
    matrix = np.arange(24, dtype=np.float32).reshape(6, 4)
    arrow = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 4)
    index = VectorIndex(4, metric="l2")
    index.add(arrow[2:5])
    index.add(pa.chunked_array([arrow[0:1], arrow[5:6]]), ids=pa.array([10, 11]))
    np.testing.assert_array_equal(index.vectors(index.ids), matrix[[2, 3, 4, 0, 5]])
    ids, _ = index.search(arrow[5:6], 1, allow=pa.array([1, 11]))
    assert ids.tolist() == [[11]]


def test_non_contiguous_read_only_and_fortran_arrays() -> None:
    matrix = np.arange(48, dtype=np.float32).reshape(6, 8)
    frozen = matrix[:, :4].copy()
    frozen.flags.writeable = False
    for array in (matrix[:, ::2], np.asfortranarray(matrix[:, 2:6]), frozen, matrix[::-2, :4]):
        index = VectorIndex(4, metric="ip")
        index.add(array)
        np.testing.assert_array_equal(index.vectors(index.ids), array)


F = np.float32


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (np.zeros((2, 3), F), ValueError, r"shape \(2, 3\); it must be \(n, 4\)"),
        (np.zeros(4, F), ValueError, r"shape \(4,\)"),
        (np.zeros((1, 1, 4), F), ValueError, r"shape \(1, 1, 4\)"),
        (np.zeros((2, 4)), TypeError, "dtype float64; it must be float32"),
        ([[0.0] * 4], TypeError, "vectors is a list"),
        (None, TypeError, "vectors is a NoneType"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], F), ValueError, "row 1, column 1 is nan"),
        (np.array([[0, 0, 0, -np.inf]], F), ValueError, "row 0, column 3 is -inf"),
        (pa.array([1.0, 2.0]), TypeError, "Arrow array of double"),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), ValueError, "lists of 2 values"),
        (pa.array([[1.0] * 4, None], pa.list_(pa.float32(), 4)), ValueError, "row 1 is null"),
        (pa.array([[1.0, 2, None, 4]], pa.list_(pa.float32(), 4)), ValueError, "column 2 is null"),
    ],
)
def test_bad_vectors_are_named(vectors: object, error: type[Exception], message: str) -> None:
    index = VectorIndex(4)
    index.add(np.ones((1, 4), F))
    with pytest.raises(error, match=message):
        index.add(vectors)
    assert len(index) == 1


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.array([5, 5]), ValueError, "id 5 is in ids twice, at 0 and 1"),
        (np.array([0, 7]), ValueError, r"ids\[0\] is 0, which is in the index already"),
        (np.array([7, -1]), ValueError, r"ids\[1\] is -1"),
        (np.array([7, 2**63 - 1]), ValueError, "ids must be from 0"),
        (np.array([7, 2**63], np.uint64), ValueError, "holds 9223372036854775808"),
        (np.array([7]), ValueError, "ids has 1 values for 2 vectors"),
        (np.array([[7, 8]]), ValueError, "one dimension"),
        (np.array([7.0, 8.0]), TypeError, "dtype float64"),
        (["a", "b"], TypeError, "must be int64"),
        (pa.array([7, None]), ValueError, "holds 1 nulls"),
    ],
)
def test_bad_ids_are_named(ids: object, error: type[Exception], message: str) -> None:
    index = VectorIndex(4)
    index.add(np.ones((1, 4), F))
    with pytest.raises(error, match=message):
        index.add(np.ones((2, 4), F), ids=ids)
    assert index.ids.tolist() == [0]
    assert index.add(np.ones((1, 4), F)).tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k is 0; it must be at least 1"),
        ({"k": -3}, ValueError, "k is -3"),
        ({"k": True}, TypeError, "k is True"),
        ({"k": 2.0}, TypeError, r"k is 2\.0"),
        ({"k": 2**50}, ValueError, "would give"),
        ({"k": 1, "effort": 0}, ValueError, "effort is 0"),
        ({"k": 1, "threads": 0}, ValueError, "threads is 0"),
        ({"k": 1, "threads": "2"}, TypeError, "threads is '2'"),
        ({"k": 1, "allow": np.zeros((2, 2), np.bool_)}, ValueError, "a mask has one dimension"),
        ({"k": 1, "allow": np.zeros(2)}, TypeError, "allow has dtype float64"),
    ],
)
def test_bad_search_arguments_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    index = VectorIndex(4)
    with pytest.raises(error, match=message):
        index.search(np.ones((1, 4), F), **arguments)  # type: ignore[arg-type]


def test_bad_queries_are_named() -> None:
    index = VectorIndex(4)
    for bad in (np.nan, np.inf):
        queries = np.ones((3, 4), F)
        queries[2, 1] = bad
        with pytest.raises(ValueError, match="queries row 2 holds nan or inf"):
            index.search(queries, 1)
    with pytest.raises(ValueError, match=r"queries has shape \(1, 5\)"):
        index.search(np.ones(5, F), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim is 0; it must be from 1 to 8192"),
        ({"dim": 8193}, "dim is 8193"),
        ({"dim": 4, "metric": "dot"}, "metric is 'dot'; it must be one of cosine, ip, l2"),
        ({"dim": 4, "kind": "tree"}, "kind is 'tree'"),
        ({"dim": 4, "kind": "graph", "degree": 1025}, "degree is 1025"),
        ({"dim": 4, "kind": "graph", "build_effort": 0}, "build_effort is 0"),
        ({"dim": 4, "storage": "int4"}, "storage is 'int4'"),
        ({"dim": 4, "storage": "float32", "keep_vectors": False}, "keep_vectors=False needs"),
        ({"dim": 4, "degree": 1}, "degree is 1"),
    ],
)
def test_what_this_version_lacks_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorIndex(**arguments)  # type: ignore[arg-type]


def test_removing_what_is_not_there_changes_nothing() -> None:
    index = VectorIndex(2)
    index.add(np.ones((3, 2), F))
    with pytest.raises(ValueError, match=r"ids\[1\] is 9, which is not in the index"):
        index.remove([0, 9])
    assert len(index) == 3
    assert index.remove([1, 1]) == 1
    with pytest.raises(ValueError, match="is 1, which is not"):
        index.vectors([1])
    assert index.remove([]) == 0


def test_unknown_tier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_NATIVE_ISA", "avx1024")
    with pytest.raises(ValueError, match="SAGE_NATIVE_ISA is 'avx1024'; this machine can run"):
        VectorIndex(4)


def test_thread_setting_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_NATIVE_THREADS", "many")
    index = VectorIndex(4)
    with pytest.raises(ValueError, match="SAGE_NATIVE_THREADS is 'many'"):
        index.search(np.ones(4, F), 1)


def test_an_index_does_not_pickle_silently() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(VectorIndex(4))


# -- payload ------------------------------------------------------------------------------


def test_payload_comes_back_by_id() -> None:
    index = VectorIndex(2)
    index.add(np.ones((1, 2), F))
    index.add(np.ones((2, 2), F), payload=[{"title": "a"}, {"title": "b", "page": 3}])
    index.add(np.ones((1, 2), F), payload=pa.table({"page": [4]}))
    index.add(np.ones((1, 2), F), payload=pa.record_batch({"title": ["e"]}))
    table = index.payload(np.array([[4, 2], [-1, 0]]))
    assert table.to_pydict() == {"title": ["e", "b", None, None], "page": [None, 3, None, None]}
    with pytest.raises(ValueError, match="id 99 is not in the index"):
        index.payload([99])


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        ([{"a": 1}], ValueError, "payload has 1 rows for 2 vectors"),
        ([{"a": 1}, 2], TypeError, r"payload\[1\] is a int"),
        ("ab", TypeError, "payload is a str"),
        ([{"title": 1}, {"title": 2}], TypeError, "payload does not fit"),
    ],
)
def test_bad_payload_is_named(payload: object, error: type[Exception], message: str) -> None:
    index = VectorIndex(2)
    index.add(np.ones((1, 2), F), payload=[{"title": "a"}])
    with pytest.raises(error, match=message):
        index.add(np.ones((2, 2), F), payload=payload)  # type: ignore[arg-type]
    assert len(index) == 1
    assert index.payload([0]).to_pydict() == {"title": ["a"]}


def test_many_small_adds_keep_payload_in_step() -> None:
    index = VectorIndex(1)
    for i in range(200):
        index.add(np.full((1, 1), i, F), payload=[{"i": i}])
    assert index.payload(np.arange(199, -1, -1))["i"].to_pylist() == list(range(199, -1, -1))


def test_read_only_refuses_changes(tmp_path: object) -> None:
    path = f"{tmp_path}/x.sagevec"
    index = VectorIndex(2)
    index.add(np.ones((2, 2), F))
    index.save(path)
    opened = VectorIndex.open(path, read_only=True)
    for change in (
        lambda: opened.add(np.ones((1, 2), F)),
        lambda: opened.remove([0]),
        opened.compact,
    ):
        with pytest.raises(VectorIndexError, match="read_only"):
            change()
    assert len(opened) == 2
