"""Headings of Markdown and reStructuredText, found line by line in linear time."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# A heading line is short: bounded repetition keeps the search linear on lines of any length.
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(\S[^\n]{0,199}?)[ \t]*#*[ \t]*$", re.MULTILINE)
_UNDERLINED = re.compile(
    r"""^(?P<title>\S[^\n]{0,199})\n(?P<line>([=\-~^"'`*+.#:_])\3{2,199})[ \t]*$""", re.MULTILINE
)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)


@dataclass(frozen=True)
class Heading:
    """A heading.

    Args:
        offset: character at which its line starts.
        level: 1 for the outermost.
        title: its text.
        path: titles from the outermost heading down to this one, joined with `` > ``.
    """

    offset: int
    level: int
    title: str
    path: str


def find_headings(text: str) -> list[Heading]:
    """All headings of ``text``, in order.

    Understands ``# Title`` (outside of fenced code) and titles underlined with a run of
    punctuation at least as long as half the title. Levels of underlined titles follow the order in
    which their marks first appear, as in reStructuredText.
    """
    fences = fenced_spans(text)
    found: list[tuple[int, int, str]] = []
    for match in _ATX.finditer(text):
        if not _inside(match.start(), fences):
            found.append((match.start(), len(match[1]), match[2]))
    marks: dict[str, int] = {}
    for match in _UNDERLINED.finditer(text):
        title = match["title"].rstrip()
        underline = match["line"]
        if len(underline) * 2 < len(title) or not any(c.isalnum() for c in title):
            continue
        if _inside(match.start(), fences) or title.startswith("#"):
            continue
        level = marks.setdefault(underline[0], len(marks) + 1)
        found.append((match.start(), level, title))
    found.sort()
    return _with_paths(found)


def _with_paths(found: Sequence[tuple[int, int, str]]) -> list[Heading]:
    headings: list[Heading] = []
    open_titles: list[tuple[int, str]] = []
    for offset, level, title in found:
        while open_titles and open_titles[-1][0] >= level:
            open_titles.pop()
        open_titles.append((level, title))
        path = " > ".join(name for _, name in open_titles)
        headings.append(Heading(offset, level, title, path))
    return headings


def fenced_spans(text: str) -> list[tuple[int, int]]:
    """Spans of fenced code blocks; an unclosed fence reaches to the end."""
    spans: list[tuple[int, int]] = []
    opened: tuple[int, str] | None = None
    for match in _FENCE.finditer(text):
        fence = match[1]
        if opened is None:
            # Tildes right below a line underline it, in reStructuredText.
            if fence[0] == "`" or text[max(match.start() - 2, 0) : match.start()] in ("", "\n\n"):
                opened = (match.start(), fence)
        elif fence[0] == opened[1][0] and len(fence) >= len(opened[1]):
            spans.append((opened[0], match.end()))
            opened = None
    if opened is not None:
        spans.append((opened[0], len(text)))
    return spans


def _inside(offset: int, spans: Sequence[tuple[int, int]]) -> bool:
    at = bisect_right(spans, offset, key=lambda span: span[0]) - 1
    return at >= 0 and offset < spans[at][1]
