"""What is refused while a pipeline is built, and where the error points."""

from __future__ import annotations

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


def test_types_that_do_not_fit_are_named_at_run_time():
    with pytest.raises(OperatorError, match=r"'s', which holds string, not numbers.*Declared at"):
        P.aggregate(by="k", n=("s", "sum")).sink().run()
    with pytest.raises(OperatorError, match="different types in different rows"):
        P.join(Q, on="s", right_on="id").sink().run()


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
