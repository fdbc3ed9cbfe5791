"""Markdown to plain text: words, headings and code stay, link targets and decoration go."""

from __future__ import annotations

import re

from sage_prefect.libs.headings import fenced_spans, find_headings

# Repetitions are bounded, so that no input makes the search quadratic.
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.{0,20000}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*['\"]?([^\n]{1,300}?)['\"]?[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.{0,5000}?-->", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\]\n]{0,500})\](?:\([^)\n]{0,2000}\)|\[[^\]\n]{0,500}\])")
_LINK = re.compile(r"\[([^\]\n]{1,1000})\](?:\([^)\n]{0,2000}\)|\[[^\]\n]{0,500}\])")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]{1,500}\]:[ \t]*\S[^\n]{0,2000}$\n?", re.MULTILINE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,20}(?:[ \t\n][^<>]{0,1000})?/?>")


def markdown_text(text: str) -> tuple[str, str]:
    """Title ("" if there is none) and plain text of a Markdown document.

    The title is that of the front matter, else the first heading.
    """
    title = ""
    front = _FRONT_MATTER.match(text)
    if front:
        found = _FRONT_TITLE.search(front[1])
        title = found[1].strip() if found else ""
        text = text[front.end() :]
    kept = []
    end = 0
    for start, stop in fenced_spans(text):  # code is left alone
        kept += [_plain(text[end:start]), text[start:stop]]
        end = stop
    kept.append(_plain(text[end:]))
    plain = "".join(kept).strip()
    if not title:
        headings = find_headings(plain)
        title = headings[0].title if headings else ""
    return title, plain


def _plain(text: str) -> str:
    text = _COMMENT.sub("", text)
    text = _IMAGE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _DEFINITION.sub("", text)
    return _TAG.sub("", text)
