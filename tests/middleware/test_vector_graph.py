"""VectorIndex(kind="graph"): recall, filters, changes and files, beside a flat index."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from sage_prefect import _native
from sage_prefect.common.errors import CorruptFileError
from sage_prefect.middleware import VectorIndex

METRICS = ("cosine", "ip", "l2")
STORAGES = ("float32", "bfloat16", "int8")
Vectors = NDArray[np.float32]


def clustered(seed: int, count: int, dim: int, clusters: int, spread: float) -> Vectors:
    """Around common centres; with a small spread the clusters are islands."""
    centres = np.random.default_rng(7).standard_normal((clusters, dim))
    rng = np.random.default_rng(seed)
    around = rng.standard_normal((count, dim)) * spread
    return (centres[rng.integers(0, clusters, count)] + around).astype(np.float32)


def pair(
    vectors: Vectors, metric: str = "cosine", storage: str = "int8", **graph: int
) -> tuple[VectorIndex, VectorIndex]:
    """A graph index and a flat one that hold the same."""
    dim = vectors.shape[1]
    indexes = (
        VectorIndex(dim, metric=metric, kind="graph", storage=storage, **graph),  # type: ignore[arg-type]
        VectorIndex(dim, metric=metric, storage=storage),  # type: ignore[arg-type]
    )
    for index in indexes:
        index.add(vectors)
    return indexes


def recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    return sum(hits) / true.size


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SAGE_NATIVE_ISA", request.param)
    return str(request.param)


@pytest.mark.parametrize(
    ("metric", "storage"),
    [("cosine", "int8"), ("ip", "float32"), ("l2", "bfloat16"), ("l2", "int8")],
)
def test_most_neighbours_are_found_on_every_tier(isa: str, metric: str, storage: str) -> None:
    vectors = clustered(1, 4000, 32, 60, 0.7)
    queries = clustered(2, 100, 32, 60, 0.7)
    if metric != "l2":  # inner products rank like distances for vectors of one length
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph, flat = pair(vectors, metric, storage, degree=16, build_effort=60)
    true, true_scores = flat.search(queries, 10)
    found, scores = graph.search(queries, 10, effort=30)
    assert graph.stats()["isa"] == isa
    assert recall(found, true) > 0.85
    # What both found has the same score, to the bit.
    for q in range(len(queries)):
        known = dict(zip(true[q].tolist(), true_scores[q].tolist(), strict=True))
        for id, score in zip(found[q].tolist(), scores[q].tolist(), strict=True):
            assert known.get(id, score) == score
    order = -scores if metric != "l2" else scores
    assert (np.diff(order, axis=1) >= 0).all()
    # It looks at a part of the vectors only.
    assert graph.stats()["rows_scanned"] < 100 * 4000 / 4
    more, _ = graph.search(queries, 10, effort=60)
    assert graph.stats()["rows_scanned"] < 200 * 4000 / 3
    assert recall(more, true) >= max(recall(found, true), 0.99)


def test_islands_are_found() -> None:
    """Clusters far from each other: links alone would not lead from one to the next."""
    vectors = clustered(3, 6000, 24, 40, 0.02)
    queries = clustered(4, 200, 24, 40, 0.02)
    # Codes of one byte cannot rank what differs by less than their step.
    graph, flat = pair(vectors, "l2", "float32", degree=12, build_effort=40)
    found, _ = graph.search(queries, 10, effort=100)
    assert recall(found, flat.search(queries, 10)[0]) > 0.93


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_batches_give_the_same(threads: int) -> None:
    graph, _ = pair(clustered(5, 3000, 16, 50, 0.5), degree=12, build_effort=40)
    queries = clustered(6, 50, 16, 50, 0.5)
    together = graph.search(queries, 7, effort=30, threads=threads)
    for q in range(len(queries)):
        alone = graph.search(queries[q], 7, effort=30, threads=1)
        np.testing.assert_array_equal(alone[0][0], together[0][q])
        np.testing.assert_array_equal(alone[1][0], together[1][q])


def test_identical_vectors_are_all_there() -> None:
    vectors = np.ones((3000, 8), np.float32)
    for metric in METRICS:
        graph, _ = pair(vectors, metric, degree=8, build_effort=20)
        ids, scores = graph.search(vectors[:2], 50, effort=60)
        assert (ids >= 0).all()
        assert all(len(set(row)) == 50 for row in ids.tolist())
        np.testing.assert_allclose(scores, {"cosine": 1, "ip": 8, "l2": 0}[metric], rtol=1e-6)


def test_lengths_that_float32_cannot_hold_are_found() -> None:
    vectors = clustered(8, 4000, 8, 20, 0.5)
    vectors[17] *= 1e20
    vectors[18] *= 1e-38
    vectors[19] = 0
    for metric in METRICS:
        graph, flat = pair(vectors, metric, degree=12, build_effort=40)
        queries = np.concatenate([clustered(9, 5, 8, 20, 0.5), vectors[17:20]])
        true, _ = flat.search(queries, 5)
        found, scores = graph.search(queries, 5, effort=80)
        assert (found >= 0).all()
        assert not np.isnan(scores).any()
        assert recall(found[:5], true[:5]) > 0.7


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.001])
def test_filters_give_k_allowed_vectors_whatever_they_leave(share: float) -> None:
    vectors = clustered(10, 9000, 16, 80, 0.6)
    queries = clustered(11, 40, 16, 80, 0.6)
    graph, flat = pair(vectors, "l2", degree=12, build_effort=40)
    allow = np.random.default_rng(12).random(9000) < share
    found, _ = graph.search(queries, 10, effort=40, allow=allow)
    true, _ = flat.search(queries, 10, allow=allow)
    np.testing.assert_array_equal(found >= 0, true >= 0)
    assert allow[found[found >= 0]].all()
    assert recall(found, true) > 0.9
    by_ids, _ = graph.search(queries, 10, effort=40, allow=np.flatnonzero(allow))
    np.testing.assert_array_equal(by_ids, found)
    if share < 0.05:
        np.testing.assert_array_equal(found, true)  # few: searched exactly


def test_removed_vectors_are_bridged() -> None:
    vectors = clustered(13, 6000, 16, 30, 0.6)
    queries = clustered(14, 100, 16, 30, 0.6)
    graph, flat = pair(vectors, "l2", degree=12, build_effort=40)
    gone = np.random.default_rng(15).permutation(6000)[:3000]
    for index in (graph, flat):
        index.remove(gone)
    true, _ = flat.search(queries, 10)
    for turn in range(2):
        found, _scores = graph.search(queries, 10, effort=25)
        assert graph.stats()["rows_scanned"] < (turn + 1) * 100 * 3000 / 2  # no exact search
        assert recall(found, true) > 0.85
        graph.compact()
        assert graph.stats()["removed"] == 0
        assert graph.stats()["linked_rows"] == 3000
    np.testing.assert_array_equal(graph.vectors(graph.ids), flat.vectors(flat.ids))


class Changes(RuleBasedStateMachine):
    """Any order of changes, beside a flat index: full effort covers so few vectors."""

    small = st.integers(-3, 3).map(float)

    @initialize(metric=st.sampled_from(["ip", "l2"]), storage=st.sampled_from(STORAGES))
    def start(self, metric: str, storage: str) -> None:
        arguments = {"metric": metric, "storage": storage}
        self.graph = VectorIndex(3, kind="graph", degree=4, build_effort=8, **arguments)  # type: ignore[arg-type]
        self.flat = VectorIndex(3, **arguments)  # type: ignore[arg-type]

    def both(self) -> tuple[VectorIndex, VectorIndex]:
        return self.graph, self.flat

    @rule(rows=st.lists(st.tuples(small, small, small), min_size=1, max_size=150))
    def add(self, rows: list[tuple[float, float, float]]) -> None:
        for index in self.both():
            index.add(np.array(rows, np.float32), payload=[{"n": i} for i in range(len(rows))])

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if len(self.flat):
            gone = data.draw(st.lists(st.sampled_from(self.flat.ids.tolist()), max_size=40))
            for index in self.both():
                index.remove(gone)

    @rule(data=st.data(), row=st.tuples(small, small, small))
    def upsert(self, data: st.DataObject, row: tuple[float, float, float]) -> None:
        id = data.draw(st.integers(0, 50))
        for index in self.both():
            index.upsert(np.array([row], np.float32), [id])

    @rule()
    def compact(self) -> None:
        self.graph.compact()

    @rule(query=st.tuples(small, small, small), k=st.integers(1, 12), data=st.data())
    def search(self, query: tuple[float, float, float], k: int, data: st.DataObject) -> None:
        allow = np.array(data.draw(st.lists(st.integers(0, 100), max_size=60)), np.int64)
        for restriction in (None, allow):
            found, scores = self.graph.search(np.array(query, np.float32), k, allow=restriction)
            true, true_scores = self.flat.search(np.array(query, np.float32), k, allow=restriction)
            np.testing.assert_array_equal(found, true)
            np.testing.assert_array_equal(scores, true_scores)
            # With so little effort a walk, as soon as there are some hundred vectors.
            near, near_scores = self.graph.search(
                np.array(query, np.float32), k, effort=1, allow=restriction
            )
            np.testing.assert_array_equal(near >= 0, true >= 0)
            here = near[near >= 0].tolist()
            assert len(set(here)) == len(here)
            assert restriction is None or set(here) <= set(allow.tolist())
            every, every_scores = self.flat.search(np.array(query, np.float32), len(self.flat) + 1)
            known = dict(zip(every[0].tolist(), every_scores[0].tolist(), strict=True))
            assert [known[id] for id in here] == near_scores[near >= 0].tolist()

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "flat"):
            return
        ids = self.flat.ids
        np.testing.assert_array_equal(np.sort(self.graph.ids), np.sort(ids))
        assert self.graph.payload(ids).equals(self.flat.payload(ids))


TestChanges = Changes.TestCase
TestChanges.settings = settings(deadline=None, max_examples=25, stateful_step_count=15)


def test_searches_beside_changes() -> None:
    vectors = clustered(16, 3000, 16, 30, 0.5)
    graph = VectorIndex(16, kind="graph", storage="int8", degree=8, build_effort=20)
    graph.add(vectors)
    stop = threading.Event()
    failures: list[BaseException] = []

    def search() -> None:
        try:
            while not stop.is_set():
                ids, scores = graph.search(vectors[:40], 5, threads=2)
                assert (ids >= 0).all()
                assert (np.diff(scores, axis=1) <= 0).all()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    readers = [threading.Thread(target=search) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(6):
            added = graph.add(vectors[:500])
            graph.remove(added[:400])
            if turn % 2:
                graph.compact()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not failures
    assert len(graph) == 3000 + 6 * 100


# -- files --------------------------------------------------------------------------------


def table_of(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Name -> (offset, size, offset of the entry)."""
    (count,) = struct.unpack_from("<I", data, 16)
    found = {}
    for at in range(64, 64 + 64 * count, 64):
        name, offset, size = struct.unpack_from("<24sQQ", data, at)
        found[name.rstrip(b"\0").decode()] = (offset, size, at)
    return found


def forge(path: Path, section: str, at: int, value: bytes) -> None:
    """Change a section and make all checksums right again."""
    data = bytearray(path.read_bytes())
    offset, size, entry = table_of(bytes(data))[section]
    data[offset + at : offset + at + len(value)] = value
    struct.pack_into("<I", data, entry + 40, _native.crc32c(bytes(data[offset : offset + size])))
    struct.pack_into("<I", data, 60, 0)
    struct.pack_into("<I", data, 60, _native.crc32c(bytes(data[:4096])))
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool, keep: bool) -> None:
    vectors = clustered(17, 4000, 16, 30, 0.5)
    queries = clustered(18, 30, 16, 30, 0.5)
    graph = VectorIndex(
        16, "l2", "graph", storage="int8", keep_vectors=keep, degree=10, build_effort=30
    )
    graph.add(vectors, payload=[{"n": i} for i in range(4000)])
    expected = graph.search(queries, 8, effort=50)
    path = tmp_path / "graph"
    graph.save(path)
    opened = VectorIndex.open(path, mmap=mmap)
    assert (opened.kind, opened.storage, opened.keep_vectors) == ("graph", "int8", keep)
    stats = opened.stats()
    assert (stats["degree"], stats["build_effort"], stats["linked_rows"]) == (10, 30, 4000)
    for got, wanted in zip(opened.search(queries, 8, effort=50), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    opened.verify()
    # Removed vectors are left out and bridged.
    opened.remove(np.arange(0, 4000, 2))
    opened.add(vectors[:7])
    opened.save(path)
    again = VectorIndex.open(path, mmap=mmap)
    assert len(again) == 2007
    assert again.stats()["linked_rows"] == 2007
    flat = VectorIndex(16, "l2", storage="int8", keep_vectors=keep)
    flat.add(vectors)
    flat.remove(np.arange(0, 4000, 2))
    flat.add(vectors[:7])
    assert recall(again.search(queries, 8, effort=30)[0], flat.search(queries, 8)[0]) > 0.85
    assert again.stats()["rows_scanned"] < 30 * 1000
    assert again.payload([3999])["n"].to_pylist() == [3999]


def test_empty_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    VectorIndex(3, kind="graph").save(path)
    opened = VectorIndex.open(path)
    assert opened.search(np.ones(3, np.float32), 2)[0].tolist() == [[-1, -1]]
    assert opened.add(np.ones((1, 3), np.float32)).tolist() == [0]
    assert opened.search(np.ones(3, np.float32), 2)[0].tolist() == [[0, -1]]


def test_damage_and_lies_are_named(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    graph = VectorIndex(4, kind="graph", degree=4, build_effort=8)
    graph.add(clustered(19, 300, 4, 5, 0.5))
    graph.save(path)
    good = path.read_bytes()
    for section in ("graph", "links"):
        offset, size, _ = table_of(good)[section]
        for at in (offset, offset + size // 2, offset + size - 1):
            bad = bytearray(good)
            bad[at] ^= 1
            path.write_bytes(bad)
            with pytest.raises(CorruptFileError, match=f"section '{section}'"):
                VectorIndex.open(path)
    lies = [
        ("links", 24 * 7, struct.pack("<I", 300), "row 7 leads to row 300"),
        ("graph", 0, struct.pack("<I", 1), "degree is 1"),
        ("graph", 0, struct.pack("<I", 5), "does not fit"),
        ("graph", 4, struct.pack("<I", 0), "build_effort is 0"),
        ("graph", 16, struct.pack("<Q", 301), "does not fit"),
        ("graph", 16, struct.pack("<Q", 200), "section 'links': has"),
    ]
    for section, at, value, message in lies:
        path.write_bytes(good)
        forge(path, section, at, value)
        with pytest.raises(CorruptFileError, match=message):
            VectorIndex.open(path)
