"""Fusion, partitions and keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect import Pipeline, Resources
from sage_prefect.kernel.explain import mermaid, text
from sage_prefect.kernel.planner import cut
from sage_prefect.kernel.resources import parse_size
from sage_prefect.kernel.source import SourcePart

ROWS = [{"n": number} for number in range(640)]
CPU, GPU = Resources(cpu=1), Resources(gpu=1)


def keep(row):
    return {}


def chain(*wishes):
    pipeline = Pipeline("p").source(ROWS)
    for wish in wishes:
        pipeline = pipeline.map(keep, adds=(), resources=wish)
    return pipeline.sink()


@pytest.mark.parametrize(
    ("wishes", "stages"),
    [
        ([None, None], [Resources()]),
        ([None, CPU, None], [CPU]),
        ([CPU, CPU], [CPU]),
        ([CPU, GPU], [CPU, GPU]),
        ([CPU, None, GPU, None, CPU], [CPU, GPU, CPU]),
        ([Resources(cpu=1), Resources(cpu=2)], [Resources(cpu=1), Resources(cpu=2)]),
    ],
)
def test_neighbours_with_the_same_placement_are_fused(wishes, stages):
    plan = chain(*wishes).plan()
    assert [stage.resources for stage in plan.stages] == stages
    assert plan.stages[0].source is not None
    assert plan.stages[-1].sink is not None
    assert sum(len(stage.steps) for stage in plan.stages) == len(wishes)


def test_stages_give_the_same_rows_as_one():
    assert chain(CPU, GPU, CPU).run().committed.data.equals(chain(None, None).run().committed.data)


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    count=st.integers(1, 20),
)
def test_cut_keeps_every_part_once_in_order(weights, count):
    parts = [SourcePart(str(i), i, str(i), weight) for i, weight in enumerate(weights)]
    count = min(count, len(parts))
    groups = cut(parts, count)
    assert [part.spec for group in groups for part in group] == list(range(len(parts)))
    assert len(groups) == count
    assert all(groups)


def test_cut_balances():
    parts = [SourcePart(str(i), i, str(i), 1.0) for i in range(100)]
    assert {len(group) for group in cut(parts, 10)} == {10}


def test_keys_depend_on_input_and_code_only():
    first, again = chain(CPU).plan(), chain(GPU).plan()
    assert [p.key for p in first.partitions] == [p.key for p in again.partitions]
    changed = Pipeline("p").source([{"n": -1}, *ROWS[1:]]).map(keep, adds=()).sink().plan()
    same = [a.key == b.key for a, b in zip(first.partitions, changed.partitions, strict=True)]
    assert same == [False, True, True, True]

    def other(row):
        return {"x": 1}

    recoded = Pipeline("p").source(ROWS).map(other, adds=()).sink().plan()
    assert first.partitions[0].key != recoded.partitions[0].key


def test_equal_parts_have_different_keys():
    plan = Pipeline("p").source([{"n": 1}] * 256).sink().plan(partitions=4)
    assert len({partition.key for partition in plan.partitions}) == 4


def test_explain_shows_stages_columns_partitions():
    plan = chain(CPU, GPU).plan(partitions=10)
    shown = text(plan)
    assert "2 stage(s) x 10 partition(s) = 20 task(s)" in shown
    assert "[placement: cpu=1]" in shown
    assert "[placement: gpu=1]" in shown
    assert "... and 7 more partition(s)" in shown
    diagram = mermaid(plan)
    assert diagram.startswith("flowchart LR")
    assert diagram.count("subgraph") == 2


@pytest.mark.parametrize(
    ("value", "size"),
    [(5, 5), ("512", 512), ("2GiB", 2 << 30), ("1.5 MB", 1_500_000), ("3k", 3000)],
)
def test_sizes(value, size):
    assert parse_size(value) == size


def test_resources_fit():
    wish = Resources(cpu=1, gpu=0.5, labels=("fast",))
    assert wish.fits({"CPU": 2, "GPU": 1, "label:fast": 1e9})
    assert not wish.fits({"CPU": 2, "GPU": 1})
    assert not wish.fits({"CPU": 0.5, "GPU": 1, "label:fast": 1})
    assert str(wish) == "cpu=1, gpu=0.5, label:fast=1"
