"""Aggregates by key: where the function allows it in two phases, before and after the exchange."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from sage_prefect.common.errors import GraphError, RecordError, UnknownNameError
from sage_prefect.kernel.exchange_file import joined
from sage_prefect.kernel.operator import PartitionOperator, SetAside
from sage_prefect.kernel.relational.tables import batches_of, column_of, concatenate, stacked

#: What a figure is: the column that it reads (None: rows) and the function over it.
Figure = tuple[str | None, str]
Phase = Literal["partial", "final", "whole"]

# Function -> (Arrow's function over rows, Arrow's function over partial results).
_MERGED = {
    "count": ("count", "sum"),
    "sum": ("sum", "sum"),
    "min": ("min", "min"),
    "max": ("max", "max"),
    "any": ("any", "any"),
    "all": ("all", "all"),
    "first": ("first", "first"),
    "last": ("last", "last"),
}
# These need all values of a group at once.
_WHOLE = {"count_distinct": "count_distinct", "list": "list"}
FUNCTIONS = tuple(sorted([*_MERGED, *_WHOLE, "mean"]))
_NUMBERS_ONLY = frozenset({"sum", "mean"})
_SAME_KIND = frozenset({"min", "max", "first", "last"})
_ALL = "sage.all"
# Rows held before they are reduced: bounds memory where groups are few.
_HELD_ROWS = 1 << 18


def figures(given: Mapping[str, Any]) -> dict[str, Figure]:
    """``{"n": "count", "total": ("amount", "sum")}``, checked.

    Raises:
        GraphError: a figure is neither ``"count"`` nor (column, function).
        UnknownNameError: there is no such function.
    """
    found: dict[str, Figure] = {}
    for name, figure in given.items():
        if figure == "count":
            found[name] = (None, "count")
            continue
        if not (
            isinstance(figure, (tuple, list))
            and len(figure) == 2
            and all(isinstance(item, str) for item in figure)
        ):
            raise GraphError(
                f"aggregate({name}={figure!r}) is no figure.",
                hint=f'Write {name}="count", or {name}=("column", "sum").',
            )
        if figure[1] not in FUNCTIONS:
            raise UnknownNameError("aggregate function", figure[1], FUNCTIONS)
        found[name] = (figure[0], figure[1])
    if not found:
        raise GraphError("aggregate() has no figures.", hint='Add one, such as n="count".')
    return found


def mergeable(wanted: Mapping[str, Figure]) -> bool:
    """Whether partial results of parts of a group can be put together."""
    return all(function not in _WHOLE for _, function in wanted.values())


class Aggregate(PartitionOperator):
    """One row per group.

    Args:
        by: the columns that make a group; none: all rows are one.
        wanted: figure name -> (column, function); see :func:`figures`.
        phase: ``"whole"``: rows in, figures out; ``"partial"``: rows in, partial results out;
            ``"final"``: partial results in, figures out.
    """

    name = "aggregate"
    replaces = True
    row_cost_s = 5e-7

    def __init__(
        self, by: Sequence[str], wanted: Mapping[str, Figure], phase: Phase = "whole"
    ) -> None:
        self.by = tuple(by)
        self.wanted = dict(wanted)
        self.phase = phase
        self.adds = tuple(self.wanted)
        needed = [column for column, _ in self.wanted.values() if column is not None]
        self.reads = self.by if phase == "final" else tuple(dict.fromkeys([*self.by, *needed]))
        if phase != "final":
            self.expects = {
                column: ("number", "boolean")
                for column, function in self.wanted.values()
                if column is not None and function in _NUMBERS_ONLY
            }
        clash = [name for name in self.by if name in self.wanted]
        if clash:
            raise GraphError(
                f"aggregate(): {clash[0]!r} names both a key and a figure.",
                hint="Give the figure another name.",
            )

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        return (*self.by, *self.wanted)

    def output_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        found = {name: kinds[name] for name in self.by if name in kinds}
        for name, (column, function) in self.wanted.items():
            if function in _SAME_KIND and self.phase != "final":
                kind = kinds.get(column or "")
            elif function in _SAME_KIND:
                kind = kinds.get(name)
            else:
                kind = {"list": "list", "any": "boolean", "all": "boolean"}.get(function, "number")
            if kind is not None:
                found[name] = kind
        return found

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        state: pa.Table | None = None
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            held.append(batch)
            rows += batch.num_rows
            if rows >= _HELD_ROWS and self.phase != "whole":
                state, held, rows = self._reduced(state, held), [], 0
        if self.phase == "whole":
            table = concatenate(self.name, joined(held))
            state = self._group(table, self._over_rows()) if table is not None else None
        else:
            state = self._reduced(state, held)
        if state is None and not self.by and self.phase != "partial":
            yield from batches_of(self._of_nothing())
        elif state is not None:
            finished = state if self.phase == "partial" else self._finish(state)
            yield from batches_of(finished)

    # -- inside ---------------------------------------------------------------------------

    def _reduced(self, state: pa.Table | None, held: list[pa.RecordBatch]) -> pa.Table | None:
        table = concatenate(self.name, joined(held))
        if table is None:
            return state
        functions = self._over_rows() if self.phase == "partial" else self._over_partials()
        reduced = self._group(table, functions)
        if state is None:
            return reduced
        both = stacked(self.name, [state, reduced])
        return self._group(both, self._over_partials())

    def _over_rows(self) -> list[tuple[str, str | None, str]]:
        """(result, column, Arrow function) over rows."""
        found: list[tuple[str, str | None, str]] = []
        for name, (column, function) in self.wanted.items():
            if function == "mean":
                found += [(f"{name}.sum", column, "sum"), (f"{name}.count", column, "count")]
            elif function in _WHOLE:
                found.append((name, column, _WHOLE[function]))
            else:
                found.append((name, column, _MERGED[function][0]))
        return found

    def _over_partials(self) -> list[tuple[str, str | None, str]]:
        found: list[tuple[str, str | None, str]] = []
        for name, (_, function) in self.wanted.items():
            if function == "mean":
                found += [(f"{name}.sum", f"{name}.sum", "sum")]
                found += [(f"{name}.count", f"{name}.count", "sum")]
            else:
                found.append((name, name, _MERGED[function][1]))
        return found

    def _group(self, table: pa.Table, functions: list[tuple[str, str | None, str]]) -> pa.Table:
        keys = list(self.by)
        if not keys:  # Arrow's functions over no key at all are fewer
            table = table.append_column(_ALL, pa.array([0] * table.num_rows, pa.int8()))
            keys = [_ALL]
        for name in keys:
            column_of(self.name, table, name)
        wanted: list[Any] = []
        for _, column, function in functions:
            if column is None:
                wanted.append(([], "count_all"))
                continue
            self._check_type(table, column, function)
            if pa.types.is_null(table.schema.field(column).type):
                # Of values that are all null Arrow counts the type "null" as one distinct value.
                at = table.schema.get_field_index(column)
                table = table.set_column(at, column, pa.nulls(table.num_rows, pa.int64()))
            options = None
            if function in ("first", "last"):
                options = pc.ScalarAggregateOptions(skip_nulls=False)
            wanted.append((column, function, options) if options else (column, function))
        try:
            # One thread: "first" and the order of groups are those of the rows.
            grouped = table.group_by(keys, use_threads=False).aggregate(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise RecordError(
                f"operator {self.name!r} cannot aggregate: {error}.",
                hint="Keys are numbers, text, booleans or times.",
            ) from error
        # Keys come first or last, by Arrow's version; results in the order of the functions.
        count = len(functions)
        first = len(keys) if grouped.schema.names[: len(keys)] == keys else 0
        results = [grouped.column(at) for at in range(first, first + count)]
        start = 0 if first else count
        found = {name: grouped.column(start + at) for at, name in enumerate(self.by)}
        for (result, _, _), values in zip(functions, results, strict=True):
            found[result] = values
        return pa.table(found)

    def _check_type(self, table: pa.Table, column: str, function: str) -> None:
        kind = column_of(self.name, table, column).type
        number = (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
        )
        if function in _NUMBERS_ONLY and not number:
            raise RecordError(
                f"operator {self.name!r} sums column {column!r}, which holds {kind}, not numbers.",
                hint="Convert it before, with .map(...).",
            )

    def _finish(self, state: pa.Table) -> pa.Table:
        found = {name: state.column(name) for name in self.by}
        for name, (_, function) in self.wanted.items():
            if function == "mean":
                total = state.column(f"{name}.sum").cast(pa.float64())
                count = state.column(f"{name}.count")
                empty = pc.equal(count, 0)
                values = pc.if_else(
                    empty, None, pc.divide(total, pc.if_else(empty, 1, count).cast(pa.float64()))
                )
                found[name] = values
            else:
                found[name] = state.column(name)
        return pa.table(found)

    def _of_nothing(self) -> pa.Table:
        """The figures over no rows: counts are 0, all else is null."""
        return pa.table(
            {
                name: pa.array([0], pa.int64()) if "count" in function else pa.nulls(1)
                for name, (_, function) in self.wanted.items()
            }
        )
