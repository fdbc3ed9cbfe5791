"""Micro-batches, and operators kept from one partition to the next."""

from __future__ import annotations

import threading
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.operator import FunctionOperator, Operator, OperatorContext, rows_to_batch
from sage_prefect.kernel.operator_pool import OperatorPool
from sage_prefect.kernel.stage import rebatch


def batches(sizes):
    start = 0
    for size in sizes:
        yield pa.RecordBatch.from_pydict({"n": pa.array(range(start, start + size), pa.int64())})
        start += size


@given(
    sizes=st.lists(st.integers(0, 30), max_size=12), size=st.one_of(st.none(), st.integers(1, 25))
)
def test_rebatch_keeps_rows_and_order(sizes, size):
    out = list(rebatch(batches(sizes), size))
    assert [n for batch in out for n in batch.column("n").to_pylist()] == list(range(sum(sizes)))
    if size:
        assert all(batch.num_rows == size for batch in out[:-1])
        assert all(0 < batch.num_rows <= size for batch in out)


def test_rebatch_does_not_join_different_schemas():
    first = pa.RecordBatch.from_pydict({"n": [1, 2]})
    other = pa.RecordBatch.from_pydict({"n": ["a"]})
    assert [batch.num_rows for batch in rebatch(iter([first, other, first]), 10)] == [2, 1, 2]


class Counted(Operator):
    made: ClassVar[list[Counted]] = []
    closed: ClassVar[list[Counted]] = []

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def setup(self):
        self.made.append(self)

    def close(self):
        self.closed.append(self)


@pytest.fixture
def pool():
    Counted.made, Counted.closed = [], []
    pool = OperatorPool(idle=2)
    yield pool
    pool.close()


def test_set_up_once_per_worker(pool):
    for run in ("r1", "r2"):
        with pool.lend(Counted("a"), OperatorContext(run_id=run)) as lent:
            assert lent.context.run_id == run
    assert len(Counted.made) == 1
    pool.close()
    assert Counted.closed == Counted.made


def test_two_threads_get_two_instances(pool):
    inside = threading.Barrier(2, timeout=10)

    def use():
        with pool.lend(Counted("a"), OperatorContext()):
            inside.wait()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Counted.made) == 2


def test_a_failed_use_closes_the_instance(pool):
    with pytest.raises(ValueError, match="boom"), pool.lend(Counted("a"), OperatorContext()):
        raise ValueError("boom")
    assert len(Counted.closed) == 1


def test_least_recently_used_is_closed(pool):
    for tag in ("a", "b", "c"):
        with pool.lend(Counted(tag), OperatorContext()):
            pass
    assert [operator.tag for operator in Counted.closed] == ["a"]


def test_without_set_up_nothing_is_kept():
    """A function from another run may look alike and see other globals."""
    pool = OperatorPool()
    functions = [eval("lambda row: {'x': X}", {"X": [x]}) for x in (1, 2)]
    for expected, function in zip(([1], [2]), functions, strict=True):
        with pool.lend(FunctionOperator(function), OperatorContext()) as lent:
            assert lent.process(rows_to_batch([{"a": 0}])).to_pylist() == [{"x": expected}]


def test_keys_of_functions_cover_module_constants_but_not_caches():
    def key(**names):
        return fingerprint(eval("lambda row: (TEMPLATE, CACHE)", names))

    assert key(TEMPLATE="a", CACHE={}) == key(TEMPLATE="a", CACHE={1: 2})
    assert key(TEMPLATE="a", CACHE={}) != key(TEMPLATE="b", CACHE={})
    assert key(TEMPLATE=("a", 1), CACHE={}) != key(TEMPLATE=("a", 2), CACHE={})
