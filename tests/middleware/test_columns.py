from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sage_prefect.common.errors import MissingColumnError, RecordError
from sage_prefect.middleware.columns import texts, vector_array, vectors, with_columns


def batch(values: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([values], ["c"])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None]),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None]).dictionary_encode(),
    ],
)
def test_texts_of_all_kinds_of_strings(values: pa.Array) -> None:
    assert texts("op", batch(values), "c") == ["a", None]


def test_texts_that_are_none() -> None:
    assert texts("op", batch(pa.nulls(2)), "c") == [None, None]
    with pytest.raises(RecordError, match="holds binary, not text"):
        texts("op", batch(pa.array([b"x"])), "c")
    with pytest.raises(MissingColumnError, match="'d'"):
        texts("op", batch(pa.array(["x"])), "d")


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.int64()),
    ],
)
def test_vectors_of_all_kinds_of_lists(kind: pa.DataType) -> None:
    values = pa.array([[9, 9], [1, 2], [3, 4]], kind).slice(1)
    made = vectors("op", batch(values), "c")
    assert made.dtype == np.float32
    assert made.tolist() == [[1, 2], [3, 4]]


def test_fixed_size_lists_are_not_copied() -> None:
    array = vector_array(np.ones((3, 4), np.float32))
    made = vectors("op", batch(array), "c")
    assert not made.flags.owndata
    assert made.__array_interface__["data"][0] == array.values.buffers()[1].address


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (pa.array([[1.0], None]), "1 null vector"),
        (pa.array([[1.0], [1.0, 2.0]]), "different lengths: 1, 2"),
        (pa.array(["x"]), "holds string, not vectors"),
        (pa.array([["x"]]), "hold string"),
        (pa.array([[1.0, None]]), r"1 null\(s\), not numbers"),
    ],
)
def test_what_are_no_vectors(values: pa.Array, why: str) -> None:
    with pytest.raises(RecordError, match=why):
        vectors("op", batch(values), "c")


def test_no_rows() -> None:
    assert vectors("op", batch(pa.array([], pa.list_(pa.float32()))), "c").shape == (0, 0)


def test_columns_are_replaced_in_place_or_appended() -> None:
    made = with_columns(
        pa.RecordBatch.from_pydict({"a": [1], "b": [2]}), {"a": pa.array(["x"]), "c": [3]}
    )
    assert made.schema.names == ["a", "b", "c"]
    assert made.to_pylist() == [{"a": "x", "b": 2, "c": 3}]
