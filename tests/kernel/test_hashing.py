"""The hash of rows is the same everywhere, and equal values hash alike."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import MissingColumnError
from sage_prefect.kernel.hashing import hash_rows, hash_values

SOME = [None, "", "a", "ab", "é", "a" * 300, "\x00"]


def test_values_are_fixed_for_ever():
    # Exchange files of a run that was interrupted are read by the next: these may not change.
    assert hash_values(pa.array([0, 1, -1])).tolist() == [
        16294208416658607535,
        10451216379200822465,
        16490336266968443936,
    ]
    assert hash_values(pa.array(["", "a", "ab"])).tolist() == [
        10451216379200822465,
        7075883509774426401,
        17593090572374134924,
    ]


def test_another_process_with_another_hash_seed_agrees():
    code = (
        "import pyarrow as pa; from sage_prefect.kernel.hashing import hash_rows;"
        "print(hash_rows(pa.record_batch({'a': ['x', 'yy', None]}), ['a']).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    ).stdout
    here = hash_rows(pa.record_batch({"a": ["x", "yy", None]}), ["a"]).tolist()
    assert found.strip() == str(here)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, 2, None]), pa.array([1.0, 2.0, None])),
        (pa.array([True, False]), pa.array([1, 0])),
        (pa.array(SOME), pa.array(SOME, pa.large_string())),
        (pa.array(SOME), pa.array(SOME).dictionary_encode()),
        (pa.array([None, None]), pa.array([None, None], pa.int64())),
        (pa.array([0.0]), pa.array([-0.0])),
        (pa.array([float("nan")]), pa.array([-float("nan")])),
        (
            pa.array([datetime.datetime(2026, 1, 1)], pa.timestamp("s")),
            pa.array([datetime.datetime(2026, 1, 1)], pa.timestamp("ns")),
        ),
    ],
)
def test_equal_values_of_different_types_hash_alike(one, other):
    assert hash_values(one).tolist() == hash_values(other).tolist()


@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), min_size=1, max_size=40), st.data())
def test_a_slice_hashes_as_its_rows_do(values, data):
    array = pa.array(values, pa.string())
    start = data.draw(st.integers(0, len(values) - 1))
    assert hash_values(array.slice(start)).tolist() == hash_values(array).tolist()[start:]
    alone = [int(hash_values(pa.array([value], pa.string()))[0]) for value in values]
    assert hash_values(array).tolist() == alone


def test_different_rows_hash_differently():
    numbers = hash_values(pa.array(range(-50_000, 50_000)))
    assert len(np.unique(numbers)) == 100_000
    texts = hash_values(pa.array([f"key-{number}" for number in range(100_000)]))
    assert len(np.unique(texts)) == 100_000
    # Spread evenly: of 100,000 rows over 64 partitions each gets 1,562 on average, deviation 39.
    assert np.bincount((texts % np.uint64(64)).astype(int)).min() > 1562 - 6 * 39


def test_columns_are_not_interchangeable():
    batch = pa.record_batch({"a": [1], "b": [2]})
    assert hash_rows(batch, ["a", "b"]) != hash_rows(batch, ["b", "a"])
    assert hash_rows(batch, ["a"]) != hash_rows(batch, ["a"], seed=1)


def test_rare_types_and_missing_columns():
    decimals = pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("1.5")])
    first, null, again = hash_values(decimals).tolist()
    assert first == again != null
    with pytest.raises(MissingColumnError, match="'exchange' reads column 'b'"):
        hash_rows(pa.record_batch({"a": [1]}), ["b"], who="exchange")
