"""Kinds of values: as much of a column's type as can be known, and checked, before a run.

``number, text, boolean, time, binary, list, struct``; a column whose kind is not known has none.
"""

from __future__ import annotations

import datetime
import decimal
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from sage_prefect.common.errors import GraphError

COMPARABLE = ("number", "text", "boolean", "time", "binary")

_PYTHON = {
    bool: "boolean",
    int: "number",
    float: "number",
    decimal.Decimal: "number",
    str: "text",
    bytes: "binary",
    datetime.datetime: "time",
    datetime.date: "time",
    list: "list",
    tuple: "list",
    dict: "struct",
}


def kind_of(kind: pa.DataType) -> str | None:
    """The kind of an Arrow type; None for null and what is none of them."""
    test = pa.types
    if test.is_dictionary(kind):
        return kind_of(kind.value_type)
    found = {
        "boolean": test.is_boolean(kind),
        "number": test.is_integer(kind) or test.is_floating(kind) or test.is_decimal(kind),
        "text": test.is_string(kind) or test.is_large_string(kind),
        "time": test.is_timestamp(kind) or test.is_date(kind),
        "binary": test.is_binary(kind) or test.is_large_binary(kind),
        "list": test.is_list(kind) or test.is_large_list(kind) or test.is_fixed_size_list(kind),
        "struct": test.is_struct(kind) or test.is_map(kind),
    }
    return next((name for name, holds in found.items() if holds), None)


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """The kinds of a schema's columns that have one."""
    found = {field.name: kind_of(field.type) for field in schema}
    return {name: kind for name, kind in found.items() if kind is not None}


def check_kinds(
    operator: str, expects: Mapping[str, Sequence[str]], kinds: Mapping[str, str]
) -> None:
    """Check that no column is known to hold what ``operator`` cannot use.

    Raises:
        GraphError: one does; names operator, column and kinds.
    """
    for column, allowed in expects.items():
        found = kinds.get(column)
        if found is not None and found not in allowed:
            raise GraphError(
                f"operator {operator!r} reads column {column!r} as {' or '.join(allowed)}, but it "
                f"holds {found}.",
                hint="Convert it before this step.",
            )


class RowTypes(typing.NamedTuple):
    """What a row function's annotations say: column -> kind (None: any). None: they say nothing."""

    takes: Mapping[str, str | None] | None
    gives: Mapping[str, str | None] | None


def row_types(function: Callable[..., Any]) -> RowTypes:
    """Columns out of ``TypedDict`` annotations: of the first parameter, and of the result (or of
    the items of the iterable that is returned)."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return RowTypes(None, None)  # no function, or names that exist for type checkers only
    gives = hints.pop("return", None)
    if get_origin(gives) in (list, tuple, Iterable, Iterator, Sequence):
        gives = next(iter(get_args(gives)), None)
    first = next(iter(hints.values()), None)
    return RowTypes(_columns(first, needed=True), _columns(gives, needed=False))


def _columns(annotation: Any, *, needed: bool) -> dict[str, str | None] | None:
    if not typing.is_typeddict(annotation):
        return None
    required = annotation.__required_keys__ if needed else annotation.__annotations__
    return {
        name: _kind_of_annotation(kind)
        for name, kind in get_type_hints(annotation).items()
        if name in required
    }


def _kind_of_annotation(annotation: Any) -> str | None:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = {
            _kind_of_annotation(item) for item in get_args(annotation) if item is not type(None)
        }
        return kinds.pop() if len(kinds) == 1 else None
    return _PYTHON.get(origin or annotation)
