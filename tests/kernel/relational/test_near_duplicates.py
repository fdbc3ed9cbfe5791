"""Near duplicates: what is found, what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError
from sage_prefect.kernel.relational.near_duplicates import shingles, signature, similarity

TEXT = (
    "A pipeline is declared once and runs in this process, or as a flow whose tasks are stages of "
    "it on workers; rows are Arrow batches, and nothing is lost."
)


def kept(texts, partitions=1, **options):
    rows = [{"at": at, "text": text} for at, text in enumerate(texts)]
    report = (Pipeline("p").source(rows).deduplicate_near("text", **options).sink()).run(
        partitions=partitions
    )
    assert report.committed.data.column_names == ["at", "text"]
    return [row["at"] for row in report.committed.data.to_pylist()]


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_first_of_similar_texts_stays(partitions):
    other = "Something else entirely, which shares no run of five letters with it: xyzzy plugh."
    texts = [TEXT, other, TEXT.upper(), TEXT.replace("once", "twice"), None, None, "", ""]
    texts += [f"{number} {number} filler {number * 7919}" for number in range(200)]
    assert kept(texts, partitions)[:5] == [0, 1, 4, 5, 6]


def test_the_threshold_decides():
    changed = TEXT.replace("Arrow batches", "plain dictionaries")
    true = similarity(shingles(TEXT, 5), shingles(changed, 5))
    assert 0.6 < true < 0.95
    assert kept([TEXT, changed], threshold=true + 0.01) == [0, 1]
    assert kept([TEXT, changed], threshold=true - 0.01) == [0]


def test_signatures_estimate_similarity():
    words = [f"word{number}" for number in range(400)]
    for shared in (100, 200, 300):
        one = shingles(" ".join(words[:300]), 5)
        other = shingles(" ".join(words[300 - shared : 600 - shared]), 5)
        estimate = float(np.mean(signature(one) == signature(other)))
        assert abs(estimate - similarity(one, other)) < 0.15


def test_arguments():
    pipeline = Pipeline("p").source([{"text": "a"}])
    with pytest.raises(GraphError, match="threshold=0"):
        pipeline.deduplicate_near("text", threshold=0)
    with pytest.raises(GraphError, match="shingle=0"):
        pipeline.deduplicate_near("text", shingle=0)
