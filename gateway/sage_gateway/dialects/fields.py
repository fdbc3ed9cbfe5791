"""Reading fields of a request that is being translated: errors name the place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_gateway.errors import HttpError

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}


def invalid(param: str, expected: str, value: Any = ...) -> HttpError:
    """400: the field is not what the API takes."""
    got = "" if value is ... else f", not {_KINDS.get(type(value), 'a number')}"
    return HttpError(
        400, f"The field {param!r} must be {expected}{got}.", code="invalid_field", param=param
    )


def text(value: Any, param: str) -> str:
    """A text.

    Raises:
        HttpError: 400, it is none.
    """
    if not isinstance(value, str):
        raise invalid(param, "a text", value)
    return value


def mapping(value: Any, param: str) -> Mapping[str, Any]:
    """An object.

    Raises:
        HttpError: 400, it is none.
    """
    if not isinstance(value, Mapping):
        raise invalid(param, "an object", value)
    return value


def items(value: Any, param: str) -> list[Any]:
    """A list.

    Raises:
        HttpError: 400, it is none.
    """
    if not isinstance(value, list):
        raise invalid(param, "a list", value)
    return value


def number(value: Any, param: str) -> float:
    """A number.

    Raises:
        HttpError: 400, it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(param, "a number", value)
    return value


def positive(value: Any, param: str) -> int:
    """A whole number above 0.

    Raises:
        HttpError: 400, it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(param, "a whole number above 0")
    return value
