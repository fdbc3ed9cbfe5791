from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.libs.headings import fenced_spans, find_headings


def test_markdown() -> None:
    text = "# One\ntext\n## Two ##\n### Three\n## Four\n"
    assert [(h.level, h.path) for h in find_headings(text)] == [
        (1, "One"),
        (2, "One > Two"),
        (3, "One > Two > Three"),
        (2, "One > Four"),
    ]


def test_rest_levels_follow_first_use() -> None:
    text = "Top\n~~~\n\nA\n---\n\nB\n---\n\nOther\n~~~~~\n"
    assert [(h.level, h.path) for h in find_headings(text)] == [
        (1, "Top"),
        (2, "Top > A"),
        (2, "Top > B"),
        (1, "Other"),
    ]


def test_code_holds_no_headings() -> None:
    text = "# Real\n```\n# comment\n```\n\n~~~~\n# more\n```\n# still\n~~~~\n# End\n"
    assert [h.title for h in find_headings(text)] == ["Real", "End"]


def test_an_unclosed_fence_reaches_to_the_end() -> None:
    text = "```\n# not\n"
    assert fenced_spans(text) == [(0, len(text))]
    assert find_headings(text) == []


def test_tables_and_rules_are_no_headings() -> None:
    assert find_headings("=====  =====\nA      B\n\n----\n\n----\n") == []


def test_offsets_point_at_the_line() -> None:
    text = "intro\n\n# One\n\nTwo\n===\n"
    assert [text[h.offset :].split("\n")[0] for h in find_headings(text)] == ["# One", "Two"]


@given(st.text(alphabet="#=-` \nab", max_size=300))
def test_offsets_rise_and_stay_inside(text: str) -> None:
    offsets = [heading.offset for heading in find_headings(text)]
    assert offsets == sorted(set(offsets))
    assert all(0 <= offset < len(text) for offset in offsets)
