"""Steps of a pipeline that look at more than one row: they put an exchange before them where rows
that belong together may be in different partitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sage_prefect.common.errors import GraphError, MissingColumnError
from sage_prefect.kernel.declaration import locates
from sage_prefect.kernel.exchange import ExchangeReader, Route
from sage_prefect.kernel.graph import Feed
from sage_prefect.kernel.operator import Operator
from sage_prefect.kernel.relational.aggregate import Aggregate, figures, mergeable
from sage_prefect.kernel.relational.join import How, Join
from sage_prefect.kernel.relational.near_duplicates import DropNearDuplicates, Signatures
from sage_prefect.kernel.relational.ordering import Sort, TopK
from sage_prefect.kernel.relational.selection import DropDuplicates, SampleFraction, SampleRows
from sage_prefect.kernel.relational.windows import (
    END,
    START,
    AssignWindows,
    SetLateRowsAside,
    microseconds,
)

if TYPE_CHECKING:
    from sage_prefect.kernel.pipeline import Pipeline

Columns = str | Sequence[str]


class RelationalSteps:
    """The methods; :class:`~sage_prefect.kernel.pipeline.Pipeline` has the state."""

    @locates
    def key_by(self, *keys: str | Callable[[dict[str, Any]], Any], name: str = "key") -> Pipeline:
        """Say which columns the steps after this one group rows by; nothing moves yet. With a
        function of the row, its result becomes column ``name``.

        Raises:
            GraphError: there is no key, or a function beside other keys.
            MissingColumnError: a key is no column.
        """
        own = _pipeline(self)
        if len(keys) == 1 and callable(keys[0]):
            function = keys[0]
            own = own.map(_Keyed(function, name), adds=(name,), name="key-by")
            columns: tuple[str, ...] = (name,)
        else:
            columns = tuple(key for key in keys if isinstance(key, str))
            if not columns or len(columns) != len(keys):
                raise GraphError(
                    f"key_by{keys!r} names no columns.",
                    hint='Write key_by("a", "b"), or key_by(function).',
                )
        _require(own, "key-by", columns)
        made = own._copy()
        made._keys = columns
        return made

    @locates
    def repartition(self, partitions: int | None = None, *, by: Columns = ()) -> Pipeline:
        """Deal rows out anew: by turns, or by a stable hash of the columns ``by``, so that rows
        with equal values share a partition.

        Args:
            partitions: how many; None: as many as before, at most 64.

        Raises:
            GraphError: ``partitions`` is not positive.
        """
        own = _pipeline(self)
        if partitions is not None and partitions < 1:
            raise GraphError(f"repartition({partitions}) is not positive.", hint="Use 1 or more.")
        columns = _columns(by)
        _require(own, "repartition", columns)
        return _exchange(own, Route("hash" if columns else "round_robin", columns, partitions))

    @locates
    def union(self, *others: Pipeline) -> Pipeline:
        """The rows of this pipeline, then those of ``others`` (without sinks)."""
        own = _pipeline(self)
        if not others:
            raise GraphError("union() got no pipeline.", hint="Write a.union(b).")
        feeds = [
            Feed(_open(pipeline, "union")._chain(), Route("forward")) for pipeline in (own, *others)
        ]
        known = [pipeline._columns[-1] for pipeline in (own, *others)]
        columns: tuple[str, ...] | None = None
        if all(names is not None for names in known):
            shared = set.intersection(*(set(names or ()) for names in known))
            columns = tuple(name for name in known[0] or () if name in shared)
        made = _fed(own, feeds, ExchangeReader(columns))
        kinds = [pipeline._kinds for pipeline in (own, *others)]
        made._kinds = {
            name: kind
            for name, kind in own._kinds.items()
            if all(other.get(name) == kind for other in kinds)
        }
        made._names = own._names.union(*(other._names for other in others))
        return made

    @locates
    def join(
        self,
        other: Pipeline,
        on: Columns | None = None,
        *,
        right_on: Columns | None = None,
        how: How = "inner",
        suffix: str = "_right",
    ) -> Pipeline:
        """Rows of this pipeline beside those of ``other`` (without sink) with equal keys.

        Args:
            on: key columns; None: those of ``key_by``.
            right_on: their names in ``other``; None: the same.
            how: ``"inner"``, or ``"left"``: rows without a partner stay, with nulls.
            suffix: for columns of ``other`` whose name is taken.

        Raises:
            GraphError: there is no key, ``how`` is unknown, or a name stays taken.
            MissingColumnError: a key is no column.
        """
        own = _pipeline(self)
        right = _open(other, "join")
        keys = _columns(on) if on is not None else own._keys
        right_keys = _columns(right_on) if right_on is not None else keys
        if how not in ("inner", "left"):
            raise GraphError(f"join(how={how!r}) is unknown.", hint="Known: inner, left.")
        if not keys or len(keys) != len(right_keys):
            raise GraphError(
                f"join(on={keys!r}, right_on={right_keys!r}) has no pairs of keys.",
                hint='Write join(other, on="id"), or on=("a", "b"), right_on=("c", "d").',
            )
        _require(own, "join", keys)
        _require(right, "join", right_keys)
        for key, other_key in zip(keys, right_keys, strict=True):
            kinds = own._kinds.get(key), right._kinds.get(other_key)
            if None not in kinds and kinds[0] != kinds[1]:
                raise GraphError(
                    f"join() compares column {key!r}, which holds {kinds[0]}, with column "
                    f"{other_key!r}, which holds {kinds[1]}.",
                    hint="Convert one of them before.",
                )
        left_columns, right_columns = own._columns[-1], right._columns[-1]
        operator = Join(keys, right_keys, how, suffix, right_columns)
        if left_columns is not None:
            after = operator.output_columns(left_columns) or ()
            twice = next((name for name in after if after.count(name) > 1), None)
            if twice is not None:
                raise GraphError(
                    f"join() would make column {twice!r} twice.", hint="Give another suffix=."
                )
        feeds = [
            Feed(own._chain(), Route("hash", keys)),
            Feed(right._chain(), Route("hash", right_keys)),
        ]
        made = _fed(own, feeds, ExchangeReader(left_columns, marked=True))
        made._names = own._names | right._names
        made = made.map(operator)
        as_named = operator._named(left_columns or (), right_columns or ())
        brought = {as_named.get(name, name): kind for name, kind in right._kinds.items()}
        made._kinds = {**brought, **own._kinds}
        made._together = keys
        made._keys = own._keys
        return made

    @locates
    def aggregate(self, by: Columns | None = None, **wanted: Any) -> Pipeline:
        """One row per group, with a figure for each keyword.

        Example:
            ``.aggregate(by="user", n="count", spent=("amount", "sum"))``

        Args:
            by: columns that make a group; None: those of ``key_by`` (and of ``window``), else all
                rows are one group.
            wanted: ``"count"`` (of rows), or (column, function); functions: all, any, count (of
                values that are not null), count_distinct, first, last (in the order of the source),
                list, max, mean, min, sum.

        Raises:
            GraphError, UnknownNameError: a figure is wrong.
            MissingColumnError: a column is not there.
        """
        own = _pipeline(self)
        keys = _columns(by) if by is not None else own._keys
        chosen = figures(wanted)
        operator = Aggregate(keys, chosen)
        _require(own, operator.name, operator.reads)
        if _are_together(own, keys):
            made = own.map(operator)
        elif mergeable(chosen):
            made = own.map(Aggregate(keys, chosen, "partial"), name=None)
            made = _exchange(made, _by(keys)).map(Aggregate(keys, chosen, "final"))
        else:
            made = _exchange(own, _by(keys)).map(operator)
        made._keys = ()
        return made

    @locates
    def sort(self, by: Columns, *, descending: bool = False) -> Pipeline:
        """All rows in order, in one partition; equal rows keep their order, nulls come last."""
        own = _pipeline(self)
        columns = _columns(by)
        if not columns:
            raise GraphError("sort() names no column.", hint='Write sort("a").')
        _require(own, "sort", columns)
        return _exchange(own, Route("single")).map(Sort(columns, descending))

    @locates
    def top_k(
        self, k: int, by: str, *, keys: Columns | None = None, largest: bool = True
    ) -> Pipeline:
        """The ``k`` rows with the largest (or smallest) ``by``, of all or of each group.

        Args:
            keys: columns that make a group; None: those of ``key_by``, else all rows are one.

        Raises:
            GraphError: ``k`` is not positive.
        """
        own = _pipeline(self)
        if k < 1:
            raise GraphError(f"top_k({k}) is not positive.", hint="Use 1 or more.")
        groups = _columns(keys) if keys is not None else own._keys
        operator = TopK(k, by, groups, largest)
        _require(own, operator.name, operator.reads)
        return _twice(own, operator, groups)

    @locates
    def sample(
        self,
        fraction: float | None = None,
        *,
        n: int | None = None,
        by: Columns = (),
        seed: int = 0,
    ) -> Pipeline:
        """A random choice that depends on the rows and ``seed`` alone: about ``fraction`` of the
        rows, or exactly ``n``.

        Args:
            by: columns to draw by: rows with equal values stay or go together; none: all columns.

        Raises:
            GraphError: not exactly one of ``fraction`` (0 to 1) and ``n`` (1 or more) is given.
        """
        own = _pipeline(self)
        columns = _columns(by)
        _require(own, "sample", columns)
        if fraction is not None and n is None and 0 <= fraction <= 1:
            return own.map(SampleFraction(fraction, columns, seed))
        if n is not None and fraction is None and n >= 1:
            return _twice(own, SampleRows(n, columns, seed), ())
        raise GraphError(
            f"sample(fraction={fraction!r}, n={n!r}) is no sample.",
            hint="Give fraction= (0 to 1) or n= (1 or more), not both.",
        )

    @locates
    def deduplicate(self, by: Columns | None = None) -> Pipeline:
        """The first row, in the order of the source, of those with equal values in ``by``.

        Args:
            by: columns; None: those of ``key_by``, else all.

        Raises:
            GraphError: all columns are meant and are not known before the run.
        """
        own = _pipeline(self)
        columns = _columns(by) if by is not None else own._keys or own._columns[-1]
        if not columns:
            raise GraphError(
                "deduplicate(): the columns at this point are not known before the run.",
                hint='Name those that count: deduplicate(by=("a", "b")).',
            )
        operator = DropDuplicates(columns)
        _require(own, operator.name, operator.reads)
        return _twice(own, operator, tuple(columns))

    @locates
    def deduplicate_near(
        self, column: str, *, threshold: float = 0.8, shingle: int = 5
    ) -> Pipeline:
        """Drop rows whose text is like that of an earlier row: Jaccard similarity of their runs of
        ``shingle`` characters is at least ``threshold``. Pairs are looked for by MinHash: one of
        similarity 0.8 is missed with probability below 1e-7, one of 0.5 with 0.13.

        Raises:
            GraphError: ``threshold`` is not in (0, 1], or ``shingle`` not positive.
        """
        own = _pipeline(self)
        if not 0 < threshold <= 1:
            raise GraphError(
                f"deduplicate_near(threshold={threshold}) is not between 0 and 1.", hint="Try 0.8."
            )
        if shingle < 1:
            raise GraphError(f"deduplicate_near(shingle={shingle}) is not positive.", hint="Try 5.")
        _require(own, "deduplicate-near", (column,))
        made = own.map(Signatures(column, shingle))
        return _exchange(made, Route("single")).map(DropNearDuplicates(column, threshold, shingle))

    @locates
    def window(
        self,
        time: str,
        size: float | str | timedelta,
        *,
        slide: float | str | timedelta | None = None,
        lateness: float | str | timedelta | None = None,
    ) -> Pipeline:
        """Put rows into windows of event time; ``aggregate()`` after it is per key and window.

        Adds ``window_start`` and ``window_end`` (exclusive); windows are aligned to the epoch. A
        row in several sliding windows comes once for each.

        Args:
            time: column of timestamps, dates, or seconds.
            size: seconds, a timedelta, or a text such as ``"5m"``.
            slide: from the start of one window to the next; None: tumbling windows.
            lateness: how long after its end a window still takes rows, by the latest time of the
                same key (of ``key_by``) before them; later ones become dead letters. None: as input
                is bounded, no row is too late.

        Raises:
            GraphError: a duration is wrong.
        """
        own = _pipeline(self)
        size_us = microseconds(size, "window size")
        slide_us = size_us if slide is None else microseconds(slide, "slide")
        if not size_us or not slide_us or slide_us > size_us:
            raise GraphError(
                f"window(size={size!r}, slide={slide!r}) would leave rows out.",
                hint="Both are positive, and slide is at most size.",
            )
        keys = own._keys
        _require(own, "window", (*keys, time))
        if lateness is not None:
            bound = microseconds(lateness, "lateness")
            if not _are_together(own, keys):
                own = _exchange(own, _by(keys))
            own = own.map(SetLateRowsAside(time, keys, size_us, slide_us, bound))
        made = own.map(AssignWindows(time, size_us, slide_us))
        made._keys = (*keys, START, END)
        return made


class _Keyed:
    """A key function as a row function; a class, so that it travels by its parts."""

    def __init__(self, function: Callable[[dict[str, Any]], Any], name: str) -> None:
        self.function = function
        self.name = name

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {self.name: self.function(row)}


def _pipeline(steps: RelationalSteps) -> Pipeline:
    return cast("Pipeline", steps)


def _columns(given: Columns) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _require(pipeline: Pipeline, operator: str, columns: Sequence[str]) -> None:
    pipeline._open_for(operator)
    known = pipeline._columns[-1]
    for column in columns if known is not None else ():
        if column not in (known or ()):
            raise MissingColumnError(operator, column, known or ())


def _open(pipeline: Any, what: str) -> Pipeline:
    if not isinstance(pipeline, RelationalSteps):
        raise GraphError(f"{what}() got {pipeline!r}, not a pipeline.")
    found = _pipeline(pipeline)
    found._open_for(what)
    return found


def _by(keys: tuple[str, ...]) -> Route:
    return Route("hash", keys) if keys else Route("single")


def _are_together(pipeline: Pipeline, keys: Sequence[str]) -> bool:
    """Whether rows with equal ``keys`` share a partition already."""
    together = pipeline._together
    return together is not None and set(together) <= set(keys)


def _exchange(pipeline: Pipeline, route: Route) -> Pipeline:
    """Close the current chain with an exchange, and begin the next."""
    feed = Feed(pipeline._chain(), route)
    made = _fed(pipeline, [feed], ExchangeReader(pipeline._columns[-1]))
    made._together = {"hash": route.keys, "single": ()}.get(route.kind)
    made._keys = pipeline._keys
    return made


def _fed(pipeline: Pipeline, feeds: Sequence[Feed], reader: ExchangeReader) -> Pipeline:
    made = pipeline._copy()
    made._source = reader
    made._source_on_error = "retry"
    made._feeds = tuple(feeds)
    made._steps = ()
    made._columns = (reader.columns,)
    made._together = None
    made._keys = ()
    return made


def _twice(pipeline: Pipeline, operator: Operator, keys: tuple[str, ...]) -> Pipeline:
    """Before the exchange, where it leaves fewer rows to move, and after it."""
    made = pipeline.map(operator)
    if _are_together(pipeline, keys):
        return made
    return _exchange(made, _by(keys)).map(operator)
