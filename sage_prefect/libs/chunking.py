"""Cut a text into chunks of bounded token count, at the strongest break within reach.

Breaks, strongest first: heading, paragraph, sentence or line, word, any character. Time and memory
beyond the text itself are linear in its length, whatever it holds: a line of 50 MB is cut like any
other text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sage_prefect.libs.headings import Heading
from sage_prefect.libs.tokens import Counts, token_counts

# A chunk's characters per token are bounded too: else a megabyte of blanks would be one chunk.
MAX_CHARACTERS_PER_TOKEN = 16
# A section that fills less than this part of the budget is joined with the next one.
_SMALL_SECTION = 0.25
# Cuts are looked for in the part of the window beyond this share of the budget.
_EARLIEST_CUT = 0.5
# Texts are counted in blocks of at least this many characters.
_BLOCK = 1 << 20

_BREAKS = (
    re.compile(r"\n[ \t]*\n\s*"),  # paragraph
    re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d\u2019]*\s+|\n\s*|[\u3002\uff01\uff1f]"),
    re.compile(r"\s+"),  # word
)


@dataclass(frozen=True)
class Span:
    """A chunk as a range of characters, without blanks at its ends.

    Args:
        start, stop: ``text[start:stop]`` is the chunk.
        tokens: its approximate token count.
        heading: path of the heading that it stands under; "" before the first.
    """

    start: int
    stop: int
    tokens: int
    heading: str = ""


def split(
    text: str,
    max_tokens: int = 256,
    overlap: int = 32,
    headings: Sequence[Heading] = (),
) -> Iterator[Span]:
    """Chunks of ``text``, in order; together they hold all of it but blanks.

    Args:
        max_tokens: bound of each chunk, by :func:`sage_prefect.libs.tokens.count_tokens`.
        overlap: tokens that a chunk repeats from the one before (none across a heading).
        headings: of this text; a chunk ends before a heading unless it is still small.

    Raises:
        ValueError: ``max_tokens`` is under 8, or ``overlap`` is negative or over half of it.
    """
    check_budget(max_tokens, overlap)
    max_characters = max_tokens * MAX_CHARACTERS_PER_TOKEN
    block = max(_BLOCK, 4 * max_characters)
    offsets = [heading.offset for heading in headings]
    start, reached = _skip_blanks(text, 0), 0
    while start < len(text):
        # Count a block from here; the chunks that surely end inside it are cut from it.
        piece = text[start : start + block]
        counts = token_counts(piece)
        last = start + block >= len(text)
        base = start
        while start < len(text) and (last or start - base + max_characters < block):
            stop, next_start = _cut(
                piece, counts, start - base, max_tokens, overlap, max_characters, base, offsets
            )
            trimmed = start - base + len(piece[start - base : stop].rstrip())
            # An overlap that ends at a heading or a run of blanks may hold nothing new.
            if base + trimmed > max(start, reached):
                reached = base + trimmed
                yield Span(
                    start,
                    base + trimmed,
                    _between(counts, start - base, trimmed),
                    _path(headings, offsets, start),
                )
            start = _skip_blanks(text, base + next_start)


def check_budget(max_tokens: int, overlap: int) -> None:
    """Refuse budgets that cannot be kept.

    Raises:
        ValueError: names the argument and its bounds.
    """
    if max_tokens < 8:
        raise ValueError(f"max_tokens={max_tokens} is too small: use 8 or more.")
    if not 0 <= overlap <= max_tokens // 2:
        raise ValueError(
            f"overlap={overlap} is out of bounds: use 0 to {max_tokens // 2} "
            f"(half of max_tokens={max_tokens})."
        )


def _cut(
    piece: str,
    counts: Counts,
    start: int,
    max_tokens: int,
    overlap: int,
    max_characters: int,
    base: int,
    offsets: Sequence[int],
) -> tuple[int, int]:
    """Where the chunk that begins at ``start`` ends, and where the next one begins."""
    before = int(counts[start - 1]) if start else 0
    # A start inside a word counts its rest as if the word began there, at most one token more.
    inside = start > 0 and piece[start].isalnum() and piece[start - 1].isalnum()
    budget = max_tokens - inside
    limit = _first_above(counts, before + budget)
    limit = min(limit, start + max_characters, len(piece))
    heading = _heading_cut(counts, start, limit, before, budget, base, offsets)
    if heading is not None:
        return heading, heading
    if limit == len(piece) and limit - start <= max_characters:
        return limit, limit
    earliest = _first_above(counts, before + int(budget * _EARLIEST_CUT))
    earliest = min(max(earliest, start + 1), limit)
    stop = _last_break(piece, earliest, limit)
    return stop, _next_start(piece, counts, start, stop, overlap)


def _heading_cut(
    counts: Counts,
    start: int,
    limit: int,
    before: int,
    budget: int,
    base: int,
    offsets: Sequence[int],
) -> int | None:
    """The first heading after enough of the budget is used, or None."""
    at = bisect_right(offsets, base + start)
    while at < len(offsets) and offsets[at] - base < limit:
        offset = offsets[at] - base
        if int(counts[offset - 1]) - before >= budget * _SMALL_SECTION:
            return offset
        at += 1
    return None


def _last_break(piece: str, earliest: int, limit: int) -> int:
    """End of the last break of the strongest kind there is between ``earliest`` and ``limit``."""
    for pattern in _BREAKS:
        last = -1
        for match in pattern.finditer(piece, earliest, limit):
            last = match.end()
        if last > earliest:
            return last
    return limit


def _next_start(piece: str, counts: Counts, start: int, stop: int, overlap: int) -> int:
    """Go back by up to ``overlap`` tokens, to a sentence or word start after ``start``."""
    if not overlap or stop >= len(piece):
        return stop
    reached = int(counts[stop - 1])
    back = _first_above(counts, reached - overlap - 1) + 1
    back = max(back, start + 1)
    for pattern in _BREAKS[1:]:
        match = pattern.search(piece, back - 1, stop)
        if match and match.end() < stop:
            return match.end()
    return stop


def _first_above(counts: Counts, value: int) -> int:
    """First index whose count is over ``value``."""
    # A value of another type would have NumPy convert the whole array for each search.
    return int(np.searchsorted(counts, np.int32(value), side="right"))


def _between(counts: Counts, start: int, stop: int) -> int:
    return int(counts[stop - 1]) - (int(counts[start - 1]) if start else 0)


def _path(headings: Sequence[Heading], offsets: Sequence[int], start: int) -> str:
    at = bisect_right(offsets, start) - 1
    return headings[at].path if at >= 0 else ""


_BLANKS = re.compile(r"\s*")


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start
