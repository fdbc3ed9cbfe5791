"""HTML to plain text: headings become Markdown's, scripts and styles go."""

from __future__ import annotations

import re
from typing import Any

from sage_prefect.common.errors import MissingDependencyError

_DROPPED = frozenset(
    {"script", "style", "noscript", "template", "svg", "math", "iframe", "object"}
    | {"head", "title"}
)
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "nav"}
    | {"ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"}
    | set(_HEADINGS)
)
_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def html_text(document: str | bytes, encoding: str | None = None) -> tuple[str, str]:
    """Title (``<title>``, else the first ``<h1>``; "" if there is none) and plain text.

    Bytes are decoded as the document itself declares, unless ``encoding`` is given.

    Raises:
        MissingDependencyError: beautifulsoup4 is not installed.
    """
    try:
        from bs4 import BeautifulSoup
    except ModuleNotFoundError:
        raise MissingDependencyError("beautifulsoup4", "documents", "reading HTML") from None
    options = {"from_encoding": encoding} if encoding and isinstance(document, bytes) else {}
    soup = BeautifulSoup(document, "html.parser", **options)
    heading = soup.title or soup.h1
    title = " ".join(heading.get_text(" ").split()) if heading else ""
    return title, _text(soup)


def _text(soup: Any) -> str:
    from bs4.element import NavigableString, PreformattedString, Tag

    pieces: list[str] = []
    # Open and close events on a stack of our own: documents may nest deeper than Python recurses.
    stack: list[tuple[Any, bool, bool]] = [(soup, False, False)]
    while stack:
        node, closing, preformatted = stack.pop()
        if isinstance(node, NavigableString):
            # Comments, doctypes and the like are strings too, of this subclass.
            if not isinstance(node, PreformattedString):
                pieces.append(str(node) if preformatted else _inline(str(node), pieces))
        elif isinstance(node, Tag):
            _tag(node, closing, preformatted, pieces, stack)
    return _LINES.sub("\n\n", "".join(pieces)).strip()


def _tag(
    node: Any,
    closing: bool,
    preformatted: bool,
    pieces: list[str],
    stack: list[tuple[Any, bool, bool]],
) -> None:
    name = node.name
    if name in _DROPPED:
        return
    if name in _BLOCKS and pieces:
        pieces.append("\n\n" if name in _HEADINGS or name == "p" else "\n")
    elif name == "br":
        pieces.append("\n")
    elif name in ("td", "th") and closing:
        pieces.append(" ")
    if closing:
        return
    if name in _HEADINGS:
        pieces.append(_HEADINGS[name])
    elif name == "li":
        pieces.append("- ")
    stack.append((node, True, preformatted))
    inner = preformatted or name in ("pre", "textarea")
    stack.extend((child, False, inner) for child in reversed(node.contents))


def _inline(text: str, pieces: list[str]) -> str:
    """Runs of white space are one blank, none at the start of a line."""
    words = " ".join(text.split())
    at_start = not pieces or pieces[-1].endswith(("\n", " "))
    before = " " if text[:1].isspace() and not at_start else ""
    after = " " if text[-1:].isspace() and words else ""
    return before + words + after
