"""Each step against a few lines of plain Python, for any rows and any number of partitions."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect import Pipeline
from sage_prefect.kernel.relational.selection import DropDuplicates

KEY = st.one_of(st.none(), st.integers(-3, 3))
ROWS = st.lists(
    st.fixed_dictionaries({"k": KEY, "v": st.one_of(st.none(), st.integers(-99, 99))}),
    min_size=1,
    max_size=60,
)
CUT = st.tuples(st.integers(1, 5), st.integers(1, 9))


def source(rows, rows_per_part):
    from sage_prefect.kernel.source import CollectionSource

    numbered = [{"at": at, **row} for at, row in enumerate(rows)]
    return Pipeline("p").source(CollectionSource(numbered, rows_per_part))


def collected(pipeline, partitions):
    return pipeline.sink().run(partitions=partitions).committed.data.to_pylist()


def multiset(rows):
    return Counter(tuple(sorted(row.items(), key=lambda item: item[0])) for row in rows)


def groups(rows, key="k"):
    found = defaultdict(list)
    for at, row in enumerate(rows):
        found[row[key]].append({"at": at, **row})
    return found


@settings(max_examples=30)
@given(ROWS, CUT)
def test_aggregate(rows, cut):
    found = collected(
        source(rows, cut[1])
        .key_by("k")
        .aggregate(
            n="count",
            known=("v", "count"),
            total=("v", "sum"),
            low=("v", "min"),
            high=("v", "max"),
            mean=("v", "mean"),
            first=("at", "first"),
            last=("at", "last"),
        ),
        cut[0],
    )
    wanted = []
    for key, members in groups(rows).items():
        values = [row["v"] for row in members if row["v"] is not None]
        wanted.append(
            {
                "k": key,
                "n": len(members),
                "known": len(values),
                "total": sum(values) if values else None,
                "low": min(values, default=None),
                "high": max(values, default=None),
                "mean": sum(values) / len(values) if values else None,
                "first": members[0]["at"],
                "last": members[-1]["at"],
            }
        )
    assert multiset(found) == multiset(wanted)


@settings(max_examples=15)
@given(ROWS, CUT)
def test_figures_that_need_all_values(rows, cut):
    found = collected(
        source(rows, cut[1]).aggregate(by="k", kinds=("v", "count_distinct"), ats=("at", "list")),
        cut[0],
    )
    assert {row["k"]: (row["kinds"], row["ats"]) for row in found} == {
        key: (
            len({row["v"] for row in members if row["v"] is not None}),
            [row["at"] for row in members],
        )
        for key, members in groups(rows).items()
    }


@settings(max_examples=30)
@given(ROWS, ROWS, CUT, st.sampled_from(["inner", "left"]))
def test_join(left, right, cut, how):
    found = collected(
        source(left, cut[1]).join(source(right, 4), on="k", how=how, suffix="_r"), cut[0]
    )
    wanted = []
    for at, row in enumerate(left):
        partners = [
            {"at_r": there, "v_r": other["v"]}
            for there, other in enumerate(right)
            if row["k"] is not None and other["k"] == row["k"]
        ]
        if how == "left" and not partners:
            partners = [{"at_r": None, "v_r": None}]
        wanted += [{"at": at, **row, **partner} for partner in partners]
    assert multiset(found) == multiset(wanted)


@settings(max_examples=20)
@given(ROWS, CUT, st.booleans())
def test_sort(rows, cut, descending):
    found = collected(source(rows, cut[1]).sort("v", descending=descending), cut[0])
    sign = -1 if descending else 1
    wanted = sorted(
        range(len(rows)),
        key=lambda at: (rows[at]["v"] is None, sign * (rows[at]["v"] or 0)),
    )
    assert [row["at"] for row in found] == wanted


@settings(max_examples=20)
@given(ROWS, CUT, st.integers(1, 4), st.booleans())
def test_top_k_of_each_key(rows, cut, k, largest):
    found = collected(source(rows, cut[1]).top_k(k, "v", keys="k", largest=largest), cut[0])
    sign = -1 if largest else 1
    wanted = []
    for members in groups(rows).values():
        best = sorted(members, key=lambda row: (row["v"] is None, sign * (row["v"] or 0)))
        wanted += best[:k]
    assert multiset(found) == multiset(wanted)


@settings(max_examples=20)
@given(ROWS, CUT)
def test_deduplicate_keeps_the_first(rows, cut):
    found = collected(source(rows, cut[1]).deduplicate("k"), cut[0])
    assert multiset(found) == multiset(members[0] for members in groups(rows).values())


@settings(max_examples=15)
@given(ROWS, ROWS, CUT)
def test_union_keeps_order(one, other, cut):
    found = collected(source(one, cut[1]).union(source(other, 3)), cut[0])
    assert [row["at"] for row in found] == [*range(len(one)), *range(len(other))]


@settings(max_examples=15)
@given(ROWS, CUT, st.integers(1, 6))
def test_repartition_moves_rows_and_loses_none(rows, cut, count):
    by_turns = source(rows, cut[1]).repartition(count)
    assert multiset(collected(by_turns, cut[0])) == multiset(collected(source(rows, 5), 1))
    assert len(by_turns.sink().plan().partitions) == count
    by_key = source(rows, cut[1]).repartition(count, by="k").map(DropDuplicates(("k",)))
    seen = [row["k"] for row in collected(by_key, cut[0])]
    assert sorted(map(str, seen)) == sorted(map(str, groups(rows)))


@settings(max_examples=15)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=80, unique=True), CUT)
def test_samples_depend_on_rows_alone(numbers, cut):
    rows = [{"v": number} for number in numbers]
    pipeline = Pipeline("p").source(rows)
    cuts = [collected(pipeline.sample(0.5), partitions) for partitions in (1, cut[0])]
    assert multiset(cuts[0]) == multiset(cuts[1])
    exact = [collected(pipeline.sample(n=7, seed=3), partitions) for partitions in (1, cut[0])]
    assert multiset(exact[0]) == multiset(exact[1])
    assert len(exact[0]) == min(7, len(rows))
    backwards = Pipeline("p").source(rows[::-1]).sample(0.5)
    assert multiset(collected(backwards, 1)) == multiset(cuts[0])


def test_a_sample_has_about_its_share():
    rows = [{"v": number} for number in range(20_000)]
    kept = collected(Pipeline("p").source(rows).sample(0.25), 3)
    assert abs(len(kept) - 5_000) < 6 * 61  # six deviations
    other = collected(Pipeline("p").source(rows).sample(0.25, seed=1), 3)
    both = {row["v"] for row in kept} & {row["v"] for row in other}
    assert abs(len(both) - 1_250) < 6 * 34


@pytest.mark.parametrize("partitions", [1, 3])
def test_rows_with_a_column_missing_or_of_a_wider_type(partitions):
    def widened(row):
        return {"k": row["n"] % 2, "v": row["n"] if row["n"] < 64 else float(row["n"])}

    pipeline = Pipeline("p").source([{"n": n} for n in range(128)]).map(widened)
    found = collected(pipeline.aggregate(by="k", total=("v", "sum")), partitions)
    assert {row["k"]: row["total"] for row in found} == {
        parity: sum(range(parity, 128, 2)) for parity in (0, 1)
    }
