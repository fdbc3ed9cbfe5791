"""A plan as a picture (SVG): one row per stage, one box per operator.

Prefect's pages show images in Markdown and leave Mermaid as text.
"""

from __future__ import annotations

import base64
from xml.sax.saxutils import escape

from sage_prefect.kernel.plan import Plan

# Seen on a light page as on a dark one.
_LINE, _TEXT = "#4a90d9", "#7a8aa0"
_LETTER, _PAD, _GAP, _BOX, _ROW, _TOP = 8, 12, 34, 34, 84, 26


def svg(plan: Plan) -> str:
    """The plan as an SVG document: stages from top to bottom, operators from left to right."""
    rows: list[str] = []
    widest = 0
    stages = [(chain, stage) for chain in plan.chains for stage in chain.stages]
    for number, (chain, stage) in enumerate(stages):
        top = number * _ROW
        title = f"stage {number}: {stage.resources}, {len(chain.partitions)} partition(s)"
        rows.append(_text(2, top + 14, title))
        x = 2
        for position, operator in enumerate(stage.operators):
            if position:
                rows.append(_arrow(x - _GAP + 2, top + _TOP + _BOX // 2, x - 4))
            width = _LETTER * len(operator.name) + 2 * _PAD
            rows.append(
                f'<rect x="{x}" y="{top + _TOP}" width="{width}" height="{_BOX}" rx="5" '
                f'fill="none" stroke="{_LINE}"/>'
            )
            rows.append(_text(x + _PAD, top + _TOP + 22, operator.name))
            x += width + _GAP
        if number + 1 < len(stages):
            rows.append(_down(22, top + _TOP + _BOX, (number + 1) * _ROW))
        widest = max(widest, x - _GAP, _LETTER * len(title))
    height = _ROW * len(stages) - (_ROW - _TOP - _BOX) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{widest + 6}" height="{height}" '
        'font-family="monospace" font-size="13">' + "".join(rows) + "</svg>"
    )


def image(plan: Plan) -> str:
    """:func:`svg` as a Markdown image that needs no file."""
    data = base64.b64encode(svg(plan).encode()).decode("ascii")
    return f"![plan of {plan.pipeline}](data:image/svg+xml;base64,{data})"


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{_TEXT}">{escape(text)}</text>'


def _arrow(start: int, y: int, end: int) -> str:
    return _path(f"M{start} {y}H{end}M{end - 6} {y - 4}L{end} {y}L{end - 6} {y + 4}")


def _down(x: int, start: int, end: int) -> str:
    return _path(f"M{x} {start}V{end}M{x - 4} {end - 6}L{x} {end}L{x + 4} {end - 6}")


def _path(shape: str) -> str:
    return f'<path d="{shape}" fill="none" stroke="{_LINE}"/>'
