"""What is refused while a pipeline is built, and where the error points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, MissingColumnError, OperatorError, SageError

P = Pipeline("p").source([{"k": 1, "v": 2, "s": "x"}])
Q = Pipeline("q").source([{"id": 1, "v": 3}])


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: P.key_by("kk"), r"'key-by' reads column 'kk'.*Did you mean 'k'"),
        (lambda: P.key_by(*()), "names no columns"),
        (lambda: P.aggregate(by="k"), "has no figures"),
        (lambda: P.aggregate(by="k", n="sum"), "is no figure"),
        (lambda: P.aggregate(by="k", n=("v", "summ")), "unknown aggregate function 'summ'"),
        (lambda: P.aggregate(by="k", n=("w", "sum")), "reads column 'w'"),
        (lambda: P.aggregate(by="k", k="count"), "names both a key and a figure"),
        (lambda: P.join(Q, on="k"), r"'join' reads column 'k'.*Columns at this point: id, v"),
        (lambda: P.join(Q, on="k", right_on="id", how="outer"), "how='outer'"),
        (lambda: P.join(Q, on=("k", "v"), right_on="id"), "no pairs of keys"),
        (lambda: P.join(Q, on="k", right_on="id", suffix=""), "column 'v' twice"),
        (lambda: P.join(Q.sink(), on="k", right_on="id"), "comes after sink"),
        (lambda: P.union(*()), "no pipeline"),
        (lambda: P.union([{"k": 1}]), "not a pipeline"),
        (lambda: P.top_k(0, "v"), "not positive"),
        (lambda: P.sample(2), "no sample"),
        (lambda: P.sample(0.5, n=3), "no sample"),
        (lambda: P.sort(()), "names no column"),
        (lambda: P.repartition(0), "not positive"),
        (lambda: P.map(lambda row: row).deduplicate(), "not known before the run"),
        (lambda: Pipeline("p").aggregate(n="count"), "before any source"),
    ],
)
def test_refused(declare, message):
    line = declare.__code__.co_firstlineno
    with pytest.raises(SageError, match=message) as caught:
        declare()
    assert f"test_declaring.py:{line}." in str(caught.value)


def test_columns_are_known_after_each_step():
    joined = P.join(Q, on="k", right_on="id")
    with pytest.raises(MissingColumnError, match="Columns at this point: k, v, s, v_right"):
        joined.sort("nope")
    with pytest.raises(MissingColumnError, match="Columns at this point: k, n"):
        joined.aggregate(by="k", n="count").sort("v")
    # An aggregate's columns are known even where those before it were not.
    free = P.map(dict).aggregate(by="k", n="count")
    with pytest.raises(MissingColumnError, match="Columns at this point: k, n"):
        free.sort("v")
    with pytest.raises(MissingColumnError, match="Columns at this point: v"):
        P.union(Q).sort("k")


def test_whole_partitions_have_no_dead_letters():
    from sage_prefect.kernel.relational.ordering import Sort

    with pytest.raises(GraphError, match="works on whole partitions"):
        P.map(Sort(("k",)), on_error="dead_letter")


def test_types_that_are_known_only_at_run_time():
    unknown = P.map(dict)
    with pytest.raises(OperatorError, match=r"'s', which holds string, not numbers.*Declared at"):
        unknown.aggregate(by="k", n=("s", "sum")).sink().run()
    with pytest.raises(OperatorError, match="different types in different rows"):
        unknown.join(Q, on="s", right_on="id").sink().run()


class Item(TypedDict):
    k: int
    s: str


class Priced(TypedDict):
    name: str
    price: float | None
    tags: list[str]


def priced(row: Item) -> Priced:
    return {"name": row["s"], "price": row["k"] / 2, "tags": []}


def several(row: Item) -> Iterator[Priced]:
    yield priced(row)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: P.aggregate(n=("s", "sum")), "reads column 's' as number or boolean.*holds text"),
        (lambda: P.window("s", 5), "reads column 's' as time or number, but it holds text"),
        (lambda: P.deduplicate_near("v"), "reads column 'v' as text, but it holds number"),
        (lambda: P.join(Q, on="s", right_on="id"), "'s', which holds text, with column 'id'"),
        (lambda: P.map(priced).sort("tags"), "'tags' as number.*but it holds list"),
        (lambda: P.flat_map(several).aggregate(n=("name", "mean")), "but it holds text"),
        (lambda: P.map(priced).map(priced), "'priced-2' reads column 'k'.*: name, price, tags"),
        (lambda: P.aggregate(by="v", s=("s", "max")).aggregate(n=("s", "sum")), "holds text"),
        (lambda: P.aggregate(k=("s", "last"), s=("s", "first")).map(priced), "'k' as number"),
        (lambda: P.join(Q, on="k", right_on="id").deduplicate_near("v_right"), "holds number"),
        (lambda: P.union(P).deduplicate_near("v"), "holds number"),
    ],
)
def test_types_are_checked_while_the_pipeline_is_built(declare, message):
    line = declare.__code__.co_firstlineno
    with pytest.raises(GraphError, match=message) as caught:
        declare()
    assert f"test_declaring.py:{line}." in str(caught.value)


def test_annotated_functions_run():
    rows = P.map(priced).filter(lambda row: row["price"] > 0).sink().run().committed.data
    assert rows.to_pylist() == [{"name": "x", "price": 0.5, "tags": []}]


def test_rows_that_share_a_partition_are_not_moved_again():
    chains = P.aggregate(by="k", n="count", v=("v", "sum")).aggregate(by="k", m=("n", "sum"))
    assert len(chains.sink().plan().chains) == 2
    moved = P.aggregate(by=("k", "v"), n="count").aggregate(by="k", m=("n", "sum"))
    assert len(moved.sink().plan().chains) == 3
    # A key that is replaced says nothing any more.
    replaced = P.aggregate(by="k", n="count").map(lambda row: {"k": 0}, adds=("k",))
    assert len(replaced.aggregate(by="k", m=("n", "sum")).sink().plan().chains) == 3
    everything = P.aggregate(n="count", v=("v", "sum")).deduplicate()
    assert len(everything.sink().plan().chains) == 2


def test_figures_over_nothing():
    nothing = P.filter(lambda row: False)
    whole = nothing.aggregate(n="count", total=("v", "sum")).sink().run().committed.data
    assert whole.to_pylist() == [{"n": 0, "total": None}]
    assert nothing.aggregate(by="k", n="count").sink().run().committed.rows == 0
    assert nothing.sort("k").sink().run().committed.rows == 0
    assert nothing.join(Q, on="k", right_on="id").sink().run().committed.rows == 0
