"""``Chunk``: one document in, its chunks out."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa

from sage_prefect.common.errors import GraphError
from sage_prefect.kernel.operator import Operator
from sage_prefect.libs.chunking import check_budget, split
from sage_prefect.libs.headings import Heading, find_headings
from sage_prefect.libs.tokens import SPECIAL_TOKENS, count_tokens, token_counts
from sage_prefect.middleware.columns import column, texts

# A title or heading before a chunk may take this share of its tokens.
_CONTEXT_SHARE = 0.25
# What makes a first paragraph a summary. With such chunks, the right source is among the first four
# passages (MiniLM) for 55 of 57 questions on Python's documentation, without for 48. Some of
# those that failed were looked at when this was designed: other questions will gain less.
_LEAST_LEAD_TOKENS = 6
_LEAD_TOKENS = 64
_LEAST_TOKENS_AFTER = 32
_LEAD_CHARACTERS = 4096
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


class Chunk(Operator):
    """Cut the text of each row into chunks of bounded token count, one row each.

    Other columns are repeated. ``text`` is replaced by the chunk; ``chunk`` (int32) counts from 0
    within the row, ``chunk_id`` is ``"<source>#<chunk>"``. A short text stays as it is; a blank
    one gives no rows.

    Args:
        max_tokens: bound per chunk, the encoder's special tokens included (256 is what MiniLM
            reads; it would ignore the rest). Counted approximately, see
            :mod:`sage_prefect.libs.tokens`.
        overlap: tokens that a chunk repeats from the one before.
        column: the text to cut.
        id_column: names the row in ``chunk_id``; its values should be unique.
        context: put the title (column ``title``, if there) and the path of headings before each
            chunk of a text that had to be cut, so that a chunk says what it is about.
        lead: the first paragraph is a chunk of its own if it is short and much follows: a summary's
            vector is blurred by the details below it.

    Raises:
        GraphError: the budget cannot be kept.
    """

    name = "chunk"
    cardinality = "many"
    row_cost_s = 2e-4

    def __init__(
        self,
        max_tokens: int = 256,
        overlap: int = 32,
        column: str = "text",
        id_column: str = "source",
        context: bool = True,
        lead: bool = True,
    ) -> None:
        try:
            check_budget(max_tokens, overlap)
            check_budget(max_tokens - SPECIAL_TOKENS, 0)
        except ValueError as error:
            raise GraphError(f"Chunk: {error}") from None
        self.max_tokens = max_tokens
        self.overlap = overlap
        self.column = column
        self.id_column = id_column
        self.with_context = context
        self.lead = lead
        self.reads = (column, id_column)
        self.adds = (column, "chunk", "chunk_id")

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        identities = column(self.name, batch, self.id_column).to_pylist()
        titles: list[str | None] = [None] * batch.num_rows
        if self.with_context and "title" in batch.schema.names and self.column != "title":
            titles = texts(self.name, batch, "title")
        origin: list[int] = []
        numbers: list[int] = []
        chunks: list[str] = []
        for row, text in enumerate(texts(self.name, batch, self.column)):
            for number, chunk in enumerate(self._chunks(text or "", titles[row] or "")):
                origin.append(row)
                numbers.append(number)
                chunks.append(chunk)
        # The long texts are dropped before rows are repeated.
        kept = [name for name in batch.schema.names if name not in self.adds]
        rows = np.array(origin, dtype=np.int64)
        arrays = {name: batch.column(name).take(pa.array(rows)) for name in kept}
        made = {
            self.column: pa.array(chunks, pa.string()),
            "chunk": pa.array(numbers, pa.int32()),
            "chunk_id": pa.array(
                [f"{identities[row]}#{n}" for row, n in zip(origin, numbers, strict=True)],
                pa.string(),
            ),
        }
        order = [name for name in batch.schema.names if name in kept or name == self.column]
        order += [name for name in made if name not in order]
        every = {**arrays, **made}
        return pa.RecordBatch.from_arrays([every[name] for name in order], names=order)

    def _chunks(self, text: str, title: str) -> list[str]:
        budget = self.max_tokens - SPECIAL_TOKENS
        headings = find_headings(text)
        lead = _lead(text, min(_LEAD_TOKENS, budget // 2)) if self.lead else 0
        if not lead:
            whole = list(islice(split(text, budget, min(self.overlap, budget // 2), headings), 2))
            if len(whole) < 2:
                return [text[span.start : span.stop] for span in whole]
        contexts: dict[str, str] = {}
        if self.with_context:
            paths = ("", *(heading.path for heading in headings))
            contexts = {path: self._context(title, path) for path in dict.fromkeys(paths)}
        # What the longest context takes is taken from all chunks.
        budget -= max((count_tokens(context) for context in contexts.values()), default=0)
        chunks = [_placed(text[:lead].strip(), title, contexts.get("", ""))] if lead else []
        rest, headings = text[lead:], _from(headings, lead)
        for span in split(rest, budget, min(self.overlap, budget // 2), headings):
            context = contexts.get(span.heading, "")
            chunks.append(_placed(rest[span.start : span.stop], title, context))
        return chunks

    def _context(self, title: str, path: str) -> str:
        limit = int((self.max_tokens - SPECIAL_TOKENS) * _CONTEXT_SHARE)
        if path and title and path.partition(" > ")[0] == title:
            return _fitting(path, limit)  # the title is the outermost heading
        return _fitting(" > ".join(part for part in (title, path) if part), limit)


def _lead(text: str, max_tokens: int) -> int:
    """Where the first paragraph ends, if it is a summary of much more; else 0."""
    end = 0
    for _ in range(3):  # a heading alone says too little
        found = _PARAGRAPH_END.search(text, end, _LEAD_CHARACTERS)
        if found is None:
            return 0
        end = found.end()
        tokens = count_tokens(text[:end])
        if tokens > max_tokens:
            return 0
        if tokens >= _LEAST_LEAD_TOKENS:
            after = count_tokens(text[end : end + _LEAD_CHARACTERS])
            return end if after >= _LEAST_TOKENS_AFTER else 0
    return 0


def _from(headings: list[Heading], offset: int) -> list[Heading]:
    """The headings as they are in the text from ``offset`` on; the one it stands under is first."""
    before = [heading for heading in headings if heading.offset < offset]
    after = [heading for heading in headings if heading.offset >= offset]
    moved = [replace(heading, offset=heading.offset - offset) for heading in after]
    return [*(replace(heading, offset=0) for heading in before[-1:]), *moved]


def _placed(chunk: str, title: str, context: str) -> str:
    """The chunk below its context, unless it begins with its title anyway."""
    shown = bool(title) and title in chunk[: len(title) + 8]
    return f"{context}\n{chunk}" if context and not shown else chunk


def _fitting(text: str, max_tokens: int) -> str:
    """The beginning of ``text`` that has at most ``max_tokens`` tokens, on one line."""
    line = " ".join(text[: max_tokens * 16].split())
    counts = token_counts(line)
    return line[: int(np.searchsorted(counts, np.int32(max_tokens), side="right"))].rstrip()
