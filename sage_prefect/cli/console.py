"""What every command prints with: one console, errors with their way out."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from sage_prefect.common.errors import SageError

# Files and pipes have no width: tables must not be cut there.
_WIDTH = None if sys.stdout.isatty() else 160

console = Console(highlight=False, width=_WIDTH)


def print_error(error: SageError) -> None:
    """``error: ...`` and, on its own line, ``hint: ...`` on standard error."""
    err = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    err.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.hint:
        err.print(Text.assemble(("hint:  ", "bold cyan"), error.hint))


def seconds(value: float | None) -> str:
    """``0.8 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``; ``-`` for None."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
