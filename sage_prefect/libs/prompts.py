"""Prompts: templates with ``{column}`` fields, numbered passages, and token budgets."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from sage_prefect.libs.tokens import count_tokens, token_counts

#: Stands where text was cut off to fit a budget.
CUT_MARK = " [... cut to fit]"


class Template:
    """A text with ``{column}`` fields. ``{{`` and ``}}`` stand for braces.

    Example:
        >>> Template("Q: {question}").render({"question": "Why?"})
        'Q: Why?'

    Raises:
        ValueError: a brace is unmatched, or a field is no plain column name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None]] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"template {_short(text)}: {error}. Write {{{{ and }}}} for braces that are meant."
            ) from None
        for literal, field, spec, conversion in parsed:
            if field is not None and (not field.isidentifier() or spec or conversion):
                suffix = f"!{conversion}" * bool(conversion) + f":{spec}" * bool(spec)
                shown = f"{{{field}{suffix}}}"
                raise ValueError(
                    f"template {_short(text)}: field {shown} is no plain column name. "
                    "Write {column}; {{ and }} for braces that are meant."
                )
            self._parts.append((literal, field))

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that the template reads, in order of first use."""
        return tuple(dict.fromkeys(field for _, field in self._parts if field is not None))

    def render(self, values: Mapping[str, object]) -> str:
        """The text with fields filled in; a null value gives an empty text.

        Raises:
            KeyError: a field without a value.
        """
        pieces = []
        for literal, field in self._parts:
            pieces.append(literal)
            if field is not None:
                value = values[field]
                pieces.append("" if value is None else str(value))
        return "".join(pieces)

    def fit(
        self, values: Mapping[str, object], max_tokens: int, trim: Sequence[str] = ("context",)
    ) -> str:
        """:meth:`render` within ``max_tokens``: fields in ``trim`` give way, first named first.

        Raises:
            KeyError: a field without a value.
            BudgetError: it is too long even without what may be cut.
        """
        text = self.render(values)
        over = count_tokens(text) - max_tokens
        if over <= 0:
            return text
        shortened = dict(values)
        for field in trim:
            if field not in self.fields or not shortened[field]:
                continue
            value = str(shortened[field])
            # A field that is used twice counts twice.
            uses = sum(1 for _, name in self._parts if name == field)
            room = count_tokens(value)
            while over > 0 and shortened[field]:
                # Counts of pieces do not add up exactly where words meet: look again.
                room -= -(-over // uses)
                shortened[field] = cut_to(value, room) if room > 0 else ""
                text = self.render(shortened)
                over = count_tokens(text) - max_tokens
            if over <= 0:
                return text
        counts = {name: count_tokens(str(values[name] or "")) for name in self.fields}
        raise BudgetError(max_tokens, counts, tuple(trim))


class BudgetError(ValueError):
    """A prompt does not fit its budget, whatever may be cut from it.

    Args:
        max_tokens: the budget.
        counts: approximate tokens per field.
        trim: the fields that could be cut.
    """

    def __init__(self, max_tokens: int, counts: Mapping[str, int], trim: Sequence[str]) -> None:
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        super().__init__(
            f"the prompt is over {max_tokens} tokens even with {', '.join(trim) or 'nothing'} cut "
            f"away (tokens per field, about: {sizes})"
        )
        self.max_tokens = max_tokens
        self.counts = dict(counts)


def cut_to(text: str, max_tokens: int) -> str:
    """``text`` if it has at most ``max_tokens`` tokens, else its beginning and a mark.

    The cut is at the end of a line, a sentence or a word where one is near.
    """
    # A token has a character at least: what is far beyond the budget need not be counted.
    counts = token_counts(text[: max_tokens * 64 + 64])
    total = int(counts[-1]) if len(counts) else 0
    if total <= max_tokens and len(text) <= max_tokens * 64 + 64:
        return text
    room = max_tokens - count_tokens(CUT_MARK)
    if room <= 0:
        return ""
    end = int(np.searchsorted(counts, np.int32(room), side="right"))
    for separator in ("\n", ". ", " "):
        at = text.rfind(separator, end // 2, end)
        if at > 0:
            end = at + len(separator.rstrip() or "")
            break
    return text[:end].rstrip() + CUT_MARK


def numbered_passages(passages: Sequence[tuple[str, str]], max_tokens: int) -> tuple[str, int]:
    """``[1] source`` and text per passage, as many as fit, best first; and how many fit.

    The first passage is cut if it alone is too long; a later one that does not fit is left out,
    with all after it.

    Args:
        passages: (source, text), best first.
        max_tokens: budget of the whole, approximate.
    """
    shown: list[str] = []
    left = max_tokens
    for number, (source, text) in enumerate(passages, start=1):
        entry = f"[{number}] {source}\n{text.strip()}"
        size = count_tokens(entry)
        if size > left:
            if not shown:
                shown.append(cut_to(entry, left))
            break
        shown.append(entry)
        left -= size
    return "\n\n".join(shown), len(shown)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
