"""Files of the vector index: round trips, damage at any byte, atomic replacement, processes."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect import _native
from sage_prefect.common.errors import CorruptFileError
from sage_prefect.middleware import VectorIndex

HEADER, ENTRY, PIECE = 4096, 64, 1 << 20


STORAGES = (("float32", True), ("int8", True), ("bfloat16", True), ("int8", False))


def make_index(
    rows: int = 50, dim: int = 8, payload: bool = True, stored: tuple[str, bool] = STORAGES[0]
) -> VectorIndex:
    vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    index = VectorIndex(dim, metric="l2", storage=stored[0], keep_vectors=stored[1])  # type: ignore[arg-type]
    index.add(
        vectors,
        ids=np.arange(rows, dtype=np.int64) * 3,
        payload=[{"text": f"row {i}"} for i in range(rows)] if payload else None,
    )
    return index


def sections(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size), read by hand as docs/native-format.md describes it."""
    data = path.read_bytes()
    assert data[:8] == b"SAGEVEC\0"
    version, header, count, flags, size = struct.unpack_from("<IIIIQ", data, 8)
    assert (version, header, flags, size) == (1, HEADER, 0, len(data))
    (stored,) = struct.unpack_from("<I", data, 60)
    assert _native.crc32c(data[:60] + bytes(4) + data[64:HEADER]) == stored
    found = {}
    for i in range(count):
        name, offset, length, crc, _ = struct.unpack_from("<24sQQII", data, 64 + i * ENTRY)
        assert offset % 64 == 0
        assert _native.crc32c(data[offset : offset + length]) == crc
        found[name.rstrip(b"\0").decode()] = (offset, length)
    return found


@pytest.mark.parametrize("stored", STORAGES)
@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool, stored: tuple[str, bool]) -> None:
    index = make_index(stored=stored)
    index.remove([0, 3 * 49])
    path = tmp_path / "sub" / "index.sagevec"
    index.save(path)
    opened = VectorIndex.open(path, mmap=mmap)
    assert len(opened) == 48
    assert (opened.dim, opened.metric) == (8, "l2")
    assert (opened.storage, opened.keep_vectors) == stored
    np.testing.assert_array_equal(opened.ids, index.ids)
    np.testing.assert_array_equal(opened.vectors(opened.ids), index.vectors(index.ids))
    queries = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    for got, expected in zip(opened.search(queries, 60), index.search(queries, 60), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert opened.payload([3, 144])["text"].to_pylist() == ["row 1", "row 48"]
    assert (opened.stats()["mapped_bytes"] > 0) == mmap
    opened.verify()


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make_index().save(path)
    found = sections(path)
    assert list(found) == ["shape", "ids", "norms", "vectors", "vector_pieces", "payload"]
    data = path.read_bytes()
    at = found["shape"][0]
    assert struct.unpack_from("<IIIIQq", data, at) == (8, 2, 0, 0, 50, 148)
    ids = np.frombuffer(data, np.int64, 50, found["ids"][0])
    np.testing.assert_array_equal(ids, np.arange(50) * 3)
    vectors = np.frombuffer(data, np.float32, 400, found["vectors"][0]).reshape(50, 8)
    np.testing.assert_array_equal(vectors, make_index().vectors(ids))


def test_changes_after_open_stay_in_memory_until_save(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make_index().save(path)
    opened = VectorIndex.open(path)
    before = path.read_bytes()
    added = opened.add(np.zeros((2, 8), np.float32), payload=[{"text": "new"}, {"text": "newer"}])
    assert added.tolist() == [148, 149]
    opened.remove([3, 148])
    opened.upsert(np.ones((1, 8), np.float32), ids=[6], payload=[{"text": "again"}])
    assert path.read_bytes() == before
    opened.compact()
    opened.save(path)  # over the file that is mapped
    assert opened.search(np.zeros(8, np.float32), 1)[0].tolist() == [[149]]
    again = VectorIndex.open(path)
    assert len(again) == 50
    assert again.payload([6, 149])["text"].to_pylist() == ["again", "newer"]
    assert again.add(np.zeros((1, 8), np.float32)).tolist() == [150]


def test_empty_index_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "index"
    VectorIndex(3, metric="ip").save(path)
    opened = VectorIndex.open(path)
    assert len(opened) == 0
    assert opened.search(np.ones(3, np.float32), 1)[0].tolist() == [[-1]]
    assert opened.add(np.ones((1, 3), np.float32)).tolist() == [0]


# -- damage -------------------------------------------------------------------------------


def use_all(path: Path, mmap: bool) -> None:
    index = VectorIndex.open(path, mmap=mmap)
    index.search(np.ones((1, index.dim), np.float32), 3)
    index.payload(index.ids[:1])


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("section", "stored"),
    [
        *((name, STORAGES[0]) for name in ("shape", "ids", "norms", "vectors", "payload")),
        *((name, STORAGES[1]) for name in ("steps", "gaps", "codes", "code_pieces", "vectors")),
        *((name, STORAGES[3]) for name in ("norms", "codes")),
        ("vector_pieces", STORAGES[2]),
    ],
)
def test_damage_in_a_section_is_named(
    tmp_path: Path, section: str, stored: tuple[str, bool], mmap: bool
) -> None:
    path = tmp_path / "index"
    make_index(stored=stored).save(path)
    good = path.read_bytes()
    offset, size = sections(path)[section]
    for at in {offset, offset + size // 2, offset + size - 1}:
        bad = bytearray(good)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(CorruptFileError, match=f"section '{section}'"):
            use_all(path, mmap)


def test_damage_far_in_a_mapped_file_is_found_when_reached(tmp_path: Path) -> None:
    rows = 3 * PIECE // (64 * 4)
    path = tmp_path / "index"
    make_index(rows, 64, payload=False).save(path)
    offset, _ = sections(path)["vectors"]
    with path.open("r+b") as file:
        file.seek(offset + 2 * PIECE + 5)
        file.write(b"\xff\x01")
    index = VectorIndex.open(path)  # the header is sound, and opening reads no vectors
    query = np.ones((1, 64), np.float32)
    ids, _ = index.search(query, 1, allow=np.array([3, 6]))
    assert ids[0, 0] in (3, 6)
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=f"section 'vectors'.*bytes {2 * PIECE} to"):
            index.search(query, 1)
    with pytest.raises(CorruptFileError, match="section 'vectors'"):
        index.verify()
    with pytest.raises(CorruptFileError, match="section 'vectors'"):
        index.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(CorruptFileError, match="section 'vectors'"):
        VectorIndex.open(path, mmap=False)


@pytest.fixture(scope="module", params=[STORAGES[0], STORAGES[1], STORAGES[3]], ids=str)
def good_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("index") / "index"
    make_index(20, 5, stored=request.param).save(path)
    return path, path.read_bytes()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), mmap=st.booleans())
def test_any_damage_is_an_error(
    good_file: tuple[Path, bytes], data: st.DataObject, mmap: bool
) -> None:
    path, good = good_file
    damaged = path.with_name("damaged")
    bad = bytearray(good)
    deed = data.draw(st.sampled_from(["cut", "flip", "zero", "insert"]))
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 500))
    if deed == "cut":
        del bad[at:]
    elif deed == "flip":
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    elif deed == "zero":
        bad[at : at + 16] = bytes(len(bad[at : at + 16]))
    else:
        bad[at:at] = b"x"
    damaged.write_bytes(bad)
    if bytes(bad) == good:
        use_all(damaged, mmap)
        return
    with pytest.raises(CorruptFileError, match="section"):
        use_all(damaged, mmap)


def resealed(data: bytearray) -> bytes:
    """The file with its header checksum made right again: damage only a validator can see."""
    data[60:64] = bytes(4)
    data[60:64] = struct.pack("<I", _native.crc32c(bytes(data[:HEADER])))
    return bytes(data)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), mmap=st.booleans())
def test_a_lying_header_is_an_error_or_harmless(
    good_file: tuple[Path, bytes], data: st.DataObject, mmap: bool
) -> None:
    path, good = good_file
    damaged = path.with_name("lying")
    bad = bytearray(good)
    field = data.draw(st.integers(8, 64 + 6 * ENTRY - 9))
    bad[field : field + 8] = data.draw(st.binary(min_size=8, max_size=8))
    damaged.write_bytes(resealed(bad))
    try:
        use_all(damaged, mmap)
    except CorruptFileError:
        return
    index = VectorIndex.open(damaged, mmap=mmap)
    assert len(index) == 20  # only reserved fields or names of optional parts were hit


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "dim 0"),
        (0, 9000, "dim 9000"),
        (4, 7, "metric"),
        (8, 1, "kind 1"),
        (12, 3, "storage 3"),
        (12, 1, "codes that are not there"),
        (32, 2, "vectors"),
        (32, 1, "neither vectors nor codes"),
        (16, 21, "rows"),
        (16, 2**62, "rows"),
        (24, 5, "next_id"),
    ],
)
def test_a_lying_shape_is_an_error(tmp_path: Path, offset: int, value: int, message: str) -> None:
    path, damaged = tmp_path / "good", tmp_path / "shape"
    make_index(20, 5).save(path)
    good = path.read_bytes()
    at, size = sections(path)["shape"]
    bad = bytearray(good)
    width = 8 if offset >= 16 else 4
    bad[at + offset : at + offset + width] = value.to_bytes(width, "little")
    entry = 64
    bad[entry + 40 : entry + 44] = struct.pack("<I", _native.crc32c(bytes(bad[at : at + size])))
    damaged.write_bytes(resealed(bad))
    with pytest.raises(CorruptFileError, match="section"):
        VectorIndex.open(damaged)


def test_other_files_and_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "index"
    for content, message in (
        (b"", "0 bytes"),
        (b"SAGEVEC", "7 bytes"),
        (b"PK\x03\x04" + bytes(5000), "no SAGE vector file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=message):
            VectorIndex.open(path)
    make_index().save(path)
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 2)
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="format version 2; this build reads version 1"):
        VectorIndex.open(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        VectorIndex.open(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        VectorIndex.open(tmp_path)


# -- writing ------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make_index(10).save(path)
    before = path.read_bytes()
    # The limit counts for this process only, and "disk full" arrives as EFBIG.
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from sage_prefect.middleware import VectorIndex\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "index = VectorIndex(64)\n"
        "index.add(np.ones((1000, 64), np.float32))\n"
        "try:\n"
        "    index.save(sys.argv[1])\n"
        "except OSError as error:\n"
        "    print(error.errno, error.filename)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [str(errno.EFBIG), str(path)], done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["index"]
    with pytest.raises(OSError, match="Is a directory"):
        make_index(1).save(f"{tmp_path}/")


def test_saved_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make_index(1).save(path)
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    make_index(2).save(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_open_closes_its_files(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make_index(1).save(path)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    kept = [VectorIndex.open(path) for _ in range(min(soft, 50))]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) > 0


def test_forked_child_searches_and_exits(tmp_path: Path) -> None:
    """No thread outlives a call; exit is clean while a daemon thread is in the middle of one."""
    script = (
        "import os, threading, numpy as np\n"
        "from sage_prefect.middleware import VectorIndex\n"
        "x = np.random.default_rng(0).standard_normal((20000, 64)).astype(np.float32)\n"
        "index = VectorIndex(64)\n"
        "index.add(x)\n"
        "expected = index.search(x[:40], 3, threads=4)[0].tolist()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if index.search(x[:40], 3, threads=4)[0].tolist() == expected else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "def work():\n"
        "    while True:\n"
        "        index.search(x[:40], 3, threads=2)\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "done", "")
