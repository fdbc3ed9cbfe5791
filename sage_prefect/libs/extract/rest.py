"""reStructuredText to plain text.

By rules, not by docutils: real documents use Sphinx roles and directives that docutils refuses.
"""

from __future__ import annotations

import re

from sage_prefect.libs.headings import find_headings

# Repetitions are bounded, so that no input makes the search quadratic.
_ROLE = re.compile(r":[a-zA-Z][\w:.+-]{0,60}:`([^`\n]{1,500})`")
_LINK = re.compile(r"`([^`<\n]{1,500}?)\s*<[^`>\n]{1,2000}>`__?")
_REFERENCE = re.compile(r"`([^`\n]{1,500})`__?")
_LITERAL = re.compile(r"``([^`\n]{1,1000})``")
_TARGET = re.compile(
    r"^[ \t]*\.\. (?:_[^\n]{1,500}:|\|[^|\n]{1,200}\|)[^\n]{0,2000}$\n?", re.MULTILINE
)
_OPTION = re.compile(r"^[ \t]+:[\w-]{1,60}:[^\n]{0,500}$\n?", re.MULTILINE)
_DIRECTIVE = re.compile(r"^([ \t]*)\.\. ([\w:.+-]{1,60})::[ \t]?([^\n]{0,2000})$", re.MULTILINE)
_EXPLICIT = re.compile(r"^[^<`\n]{0,500}<([^<>\n]{1,500})>$")

# Directives whose name says nothing of the content, only of its form.
_FORMAL = frozenset(
    {"code", "code-block", "sourcecode", "parsed-literal", "highlight", "index", "only", "toctree"}
    | {"image", "figure", "include", "literalinclude", "contents", "raw", "rubric", "currentmodule"}
)


def rest_text(text: str) -> tuple[str, str]:
    """Title (the first heading; "" if there is none) and plain text of a reST document."""
    text = _TARGET.sub("", text)
    text = _DIRECTIVE.sub(_directive, text)
    text = _OPTION.sub("", text)
    text = _ROLE.sub(lambda match: _shown(match[1]), text)
    text = _LITERAL.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _REFERENCE.sub(r"\1", text).strip()
    headings = find_headings(text)
    return (headings[0].title if headings else ""), text


def _directive(match: re.Match[str]) -> str:
    """``.. function:: open(file)`` keeps its argument; ``.. note:: text`` keeps name and text."""
    indent, name, argument = match[1], match[2], match[3].strip()
    if name in _FORMAL:
        return ""
    plain = name.rpartition(":")[2]
    return f"{indent}{plain}: {argument}" if argument else f"{indent}{plain}:"


def _shown(text: str) -> str:
    """What a role shows: ``title <target>`` its title, ``~a.b.c`` its last part."""
    explicit = _EXPLICIT.match(text)
    if explicit:
        return text[: text.rindex("<")].strip() or explicit[1]
    return text[1:].rpartition(".")[2] if text.startswith("~") else text.lstrip("!")
