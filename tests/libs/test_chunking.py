from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect.libs.chunking import MAX_CHARACTERS_PER_TOKEN, Span, split
from sage_prefect.libs.headings import find_headings
from sage_prefect.libs.tokens import count_tokens

words = st.lists(
    st.sampled_from(
        ["a", "word", "antidisestablishmentarianism", "1234567", "x.y(z)", "日本", "é", ".", "!"]
    )
    | st.sampled_from([" ", "  ", "\n", "\n\n", "# Title\n", "Title\n=====\n", "\t", "\u2028"]),
    max_size=400,
).map("".join)


def chunks(text: str, max_tokens: int = 32, overlap: int = 8) -> list[Span]:
    return list(split(text, max_tokens, overlap, find_headings(text)))


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(words, st.text(max_size=2000)),
    max_tokens=st.integers(8, 64),
    share=st.floats(0, 0.5),
)
def test_holds_all_text_in_order_within_the_budget(
    text: str, max_tokens: int, share: float
) -> None:
    spans = chunks(text, max_tokens, int(max_tokens * share))
    covered = [False] * len(text)
    for span in spans:
        assert span.start < span.stop
        assert text[span.start : span.stop] == text[span.start : span.stop].strip()
        assert count_tokens(text[span.start : span.stop]) <= max_tokens
        assert span.stop - span.start <= max_tokens * MAX_CHARACTERS_PER_TOKEN
        covered[span.start : span.stop] = [True] * (span.stop - span.start)
    assert all(hit or text[at].isspace() for at, hit in enumerate(covered))
    assert [span.start for span in spans] == sorted({span.start for span in spans})
    assert [span.stop for span in spans] == sorted({span.stop for span in spans})


def test_overlap_before_a_heading_makes_no_chunk_of_its_own() -> None:
    text = "a1234567Title\n=====\n# Title\n"
    spans = chunks(text, 13, 6)
    assert [text[span.start : span.stop] for span in spans] == ["a1234567Title\n=====", "# Title"]


@settings(max_examples=50, deadline=None)
@given(text=words)
def test_without_overlap_no_character_is_repeated(text: str) -> None:
    spans = chunks(text, 16, 0)
    assert all(a.stop <= b.start for a, b in pairwise(spans))


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox jumps. Over the lazy dog, it does!\n\n" * 200
    whole = list(split(text, 32, 8))
    monkeypatch.setattr("sage_prefect.libs.chunking._BLOCK", 1)
    assert list(split(text, 32, 8)) == whole


def test_a_short_text_is_one_chunk() -> None:
    assert [(span.start, span.stop) for span in chunks("  A short docstring.\n")] == [(2, 20)]


def test_blank_text_gives_none() -> None:
    assert chunks(" \n\n\t ") == []


def test_prefers_paragraphs_to_sentences_to_words() -> None:
    paragraph = "one two three four five six seven eight nine ten.\n\n"
    spans = chunks(paragraph * 4, 24, 0)
    assert all((paragraph * 4)[span.start : span.stop].endswith("ten.") for span in spans)
    sentence = "one two three four five six seven. "
    spans = chunks(sentence * 8, 24, 0)
    assert all((sentence * 8)[span.start : span.stop].endswith("seven.") for span in spans)
    spans = chunks("word " * 100, 24, 0)
    assert all(set(("word " * 100)[s.start : s.stop].split()) == {"word"} for s in spans)


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = " ".join(f"word{n}" for n in range(200))
    spans = chunks(text, 40, 10)
    for before, after in pairwise(spans):
        shared = text[after.start : before.stop]
        assert 0 < count_tokens(shared) <= 10


def test_ends_before_a_heading_and_names_it() -> None:
    body = "Some words that fill the section up nicely. " * 3
    text = f"# Guide\n{body}\n## Install\n{body}\n## Use\n{body}"
    spans = chunks(text, 64, 8)
    assert [text[s.start : s.stop].splitlines()[0] for s in spans] == [
        "# Guide",
        "## Install",
        "## Use",
    ]
    assert [s.heading for s in spans] == ["Guide", "Guide > Install", "Guide > Use"]


def test_small_sections_are_joined() -> None:
    text = "# A\nx\n# B\ny\n# C\nz\n"
    assert len(chunks(text, 64, 0)) == 1


@pytest.mark.parametrize("line", ["a" * 3_000_000, "word " * 600_000, " " * 3_000_000 + "x"])
def test_memory_stays_bounded_on_one_long_line(line: str) -> None:
    tracemalloc.start()
    try:
        count = sum(1 for _ in split(line, 256, 32))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 1
    # Blocks of a million characters, some twenty bytes each; not the whole text at once.
    assert peak < 64 << 20


@pytest.mark.parametrize(("max_tokens", "overlap"), [(7, 0), (0, 0), (-1, 0), (32, 17), (32, -1)])
def test_refuses_budgets_that_cannot_be_kept(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"max_tokens=|overlap="):
        list(split("text", max_tokens, overlap))
