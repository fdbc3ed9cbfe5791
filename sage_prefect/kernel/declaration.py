"""Where in the user's code a step was declared."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from sage_prefect.common.errors import SageError

_KERNEL = str(Path(__file__).parent) + os.sep

P = ParamSpec("P")
R = TypeVar("R")


def declared_at() -> str:
    """``file:line`` of the nearest caller outside of this package; "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_KERNEL):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno}"


def locates(method: Callable[P, R]) -> Callable[P, R]:
    """Errors that ``method`` raises say where it was called."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except SageError as error:
            place = declared_at()
            if place and "Declared at " not in (error.hint or ""):
                error.hint = f"{error.hint or ''} Declared at {place}.".lstrip()
            raise

    return wrapper


def _shown(file: str) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file
