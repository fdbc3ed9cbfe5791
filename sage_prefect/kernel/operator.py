"""What an operator is: the contract between a pipeline's steps and whatever runs them.

An operator declares the columns that it reads and adds, wishes resources, and turns one Arrow
batch into another. ``setup()`` runs once per worker before the first batch, ``close()`` when the
worker ends. An instance is used by one thread at a time.

Errors: ``process`` may raise anything. What ``retry_on`` names, and every
:class:`~sage_prefect.common.errors.SageError` with ``retryable`` set, is retried by the runner
with the whole partition; the rest fails the partition or, under ``on_error="dead_letter"``, only
the rows that cause it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from sage_prefect.common.errors import GraphError, RecordError
from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.kinds import RowTypes, row_types
from sage_prefect.kernel.resources import Resources

Cardinality = Literal["one", "many", "fewer"]
Batches: TypeAlias = "pa.RecordBatch | Iterable[pa.RecordBatch]"
SetAside: TypeAlias = "Callable[[pa.RecordBatch, str], None]"


@dataclass(frozen=True)
class OperatorContext:
    """What a running operator may know of its run.

    Args:
        pipeline: name of the pipeline ("" when an operator runs alone).
        run_id: identifies the run.
        band, tenant, deadline_ms: urgency of the run; inference calls pass it on to the gateway.
    """

    pipeline: str = ""
    run_id: str = ""
    band: str | None = None
    tenant: str | None = None
    deadline_ms: float | None = None


class Operator:
    """Base of all operators. Subclass it, or decorate a class or a function with :func:`operator`.

    Attributes:
        name: shows in plans, task names and errors.
        reads: columns that must be there.
        expects: column -> kinds of values that it may hold (see :mod:`sage_prefect.kernel.kinds`);
            checked while the pipeline is built where the kind is known.
        adds: columns that are there afterwards (new, or replaced).
        replaces: its rows have no columns but those that it names itself: nothing need be known of
            the columns before.
        cardinality: ``"one"`` row out per row in (checked), ``"many"`` (expands), ``"fewer"``
            (filters).
        resources: wish of each run.
        batch_size: rows per call of :meth:`process`; ``None``: batches as they come.
        retry_on: exception types that a retry of the partition may cure.
        row_cost_s: rough seconds per input row on one core; only for partition sizes.
        version: raise it when the output changes for the same parameters; part of the key under
            which finished partitions are reused.
    """

    name: str = ""
    reads: tuple[str, ...] = ()
    expects: Mapping[str, Sequence[str]] = {}
    adds: tuple[str, ...] = ()
    replaces: bool = False
    cardinality: Cardinality = "one"
    resources: Resources = Resources()
    batch_size: int | None = None
    retry_on: tuple[type[BaseException], ...] = ()
    row_cost_s: float = 1e-5
    version: str = "1"

    _params: Mapping[str, Any] = {}
    context: OperatorContext = OperatorContext()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remember_params(cls.__init__)  # type: ignore[method-assign]
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__.lower()

    # -- what an implementation provides --------------------------------------------------

    def setup(self) -> None:
        """Load models, open connections and indexes. ``self.context`` is set."""

    def process(self, batch: pa.RecordBatch) -> Batches:
        """Turn one batch into one batch (or several, for ``cardinality="many"``)."""
        raise TypeError(f"operator {self.name!r} defines no process(batch).")

    def close(self) -> None:
        """Release what :meth:`setup` took."""

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        """Columns after this operator; ``None`` when that is not known before the run."""
        return (*columns, *(name for name in self.adds if name not in columns))

    def output_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        """Kinds of values after this operator, of the columns of which that is known."""
        return {name: kind for name, kind in kinds.items() if name not in self.adds}

    def state_key(self) -> str:
        """What outside state the output depends on (index generation, model revision).

        Part of the key under which finished partitions are reused; evaluated when a run starts.
        """
        return ""

    def key_params(self) -> Mapping[str, Any]:
        """The parameters that the output depends on; part of the key for reuse.

        A source leaves out what only selects input: its parts have keys of their own.
        """
        return self.params

    def content_key(self) -> str:
        """Key of what this operator does: its code, version, parameters and outside state."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return fingerprint([kind, self.version, self._code(), self.key_params(), self.state_key()])

    def _code(self) -> Any:
        return type(self)

    # -- what it has ----------------------------------------------------------------------

    @property
    def params(self) -> Mapping[str, Any]:
        """Constructor arguments, as given, defaults filled in."""
        return self._params

    def as_task(self, **options: Any) -> Any:
        """This operator as a Prefect task, to use in a hand-written flow.

        The task takes a list of rows (dicts), a ``pyarrow.RecordBatch`` or ``Table`` and returns
        the same kind. ``options`` are those of ``prefect.task`` (``retries``, ``tags``...), plus
        ``resources=`` to override the operator's wish.
        """
        from sage_prefect.kernel.runners import runner

        return runner("prefect").operator_task(self, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Operators travel to workers as class + parameters: what setup() opened stays behind.
        return (_rebuild, (type(self), dict(self._params), dict(self._overrides())))

    def _overrides(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in _OVERRIDABLE if key in self.__dict__}

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={_short(value)}" for key, value in self.params.items())
        return f"{type(self).__name__}({shown})"


# Attributes that an instance may carry beside its parameters (set by a step or an __init__).
_OVERRIDABLE = (
    "name",
    "reads",
    "expects",
    "adds",
    "resources",
    "batch_size",
    "retry_on",
    "cardinality",
)


def _rebuild(cls: type[Operator], params: dict[str, Any], overrides: dict[str, Any]) -> Operator:
    signature = inspect.signature(cls.__init__)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if name not in params:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(params[name])
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(params[name])
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(params[name])
        else:
            kwargs[name] = params[name]
    rebuilt = cls(*args, **kwargs)
    rebuilt.__dict__.update(overrides)
    return rebuilt


def _remember_params(init: Callable[..., None]) -> Callable[..., None]:
    if getattr(init, "_remembers", False):
        return init
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Operator, *args: Any, **kwargs: Any) -> None:
        # A subclass's __init__ calls its base's: only the outermost call names the parameters.
        if "_params" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self._params = dict(list(bound.arguments.items())[1:])
        init(self, *args, **kwargs)

    wrapper._remembers = True  # type: ignore[attr-defined]
    return wrapper


_CARDINALITY: dict[str, Cardinality] = {
    "map": "one",
    "filter": "fewer",
    "flat_map": "many",
    "batches": "many",
}


class PartitionOperator(Operator):
    """An operator that sees a whole partition's rows as a stream: it may keep state over them.

    The runner checks that it reads what was sent; what it emits is its own affair. A failure fails
    the partition (there is no row to blame): ``on_error="dead_letter"`` is refused.
    """

    cardinality: Cardinality = "many"

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        """Turn a partition's batches into others.

        Args:
            set_aside: called with rows and the reason why they are not processed; they are counted
                and kept as dead letters.
        """
        raise TypeError(f"operator {self.name!r} defines no process_partition().")

    def process(self, batch: pa.RecordBatch) -> Batches:
        """The one batch as a partition of its own."""

        def refuse(rows: pa.RecordBatch, reason: str) -> None:
            raise RecordError(f"operator {self.name!r}: {rows.num_rows} row(s): {reason}")

        return list(self.process_partition(iter([batch]), refuse))


class FunctionOperator(Operator):
    """A plain function as an operator.

    Args:
        function: the function.
        kind: ``"map"``: row (dict) to dict; ``"flat_map"``: row to an iterable of dicts;
            ``"filter"``: row to bool; ``"batches"``: RecordBatch to RecordBatch(es).
        name, reads, adds: as in :class:`Operator`. With ``adds`` given, a map's result is merged
            into its row; with ``adds=None`` it replaces the row, and the columns after it are not
            known before the run, unless the function's annotations tell: a ``TypedDict`` as its
            result names the columns and their types, one as its parameter those that it reads.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        kind: Literal["map", "flat_map", "filter", "batches"] = "map",
        name: str | None = None,
        reads: tuple[str, ...] = (),
        adds: tuple[str, ...] | None = None,
    ) -> None:
        if not callable(function):
            raise GraphError(f"{function!r} is neither an operator nor a function.")
        self.function = function
        self.kind = kind
        self.name = name or getattr(function, "__name__", "function").strip("<>")
        self.reads = tuple(reads)
        self.adds = tuple(adds or ())
        self.merges = adds is not None
        self.replaces = not self.merges and kind != "filter"
        self.cardinality = _CARDINALITY[kind]
        types = row_types(function) if kind != "batches" else RowTypes(None, None)
        if types.takes is not None:
            self.reads = tuple(dict.fromkeys([*self.reads, *types.takes]))
            self.expects = {name: (k,) for name, k in types.takes.items() if k is not None}
        self._gives = types.gives if kind in ("map", "flat_map") else None

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...] | None:
        if self.kind == "filter":
            return tuple(columns)
        if self.merges:
            return super().output_columns(columns)
        return None if self._gives is None else tuple(self._gives)

    def output_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        if self.kind == "filter":
            return dict(kinds)
        kept = super().output_kinds(kinds) if self.merges else {}
        return kept | {name: kind for name, kind in (self._gives or {}).items() if kind is not None}

    def process(self, batch: pa.RecordBatch) -> Batches:
        if self.kind == "batches":
            result: Batches = self.function(batch)
            return result
        rows = batch.to_pylist()
        if self.kind == "filter":
            mask = [bool(self._call(row, at)) for at, row in enumerate(rows)]
            return batch.filter(pa.array(mask, pa.bool_()))
        produced: list[dict[str, Any]] = []
        for at, row in enumerate(rows):
            result = self._call(row, at)
            for item in [result] if self.kind == "map" else result:
                if not isinstance(item, Mapping):
                    raise RowFailure(
                        at, TypeError(f"returned {type(item).__name__}, not a dict of columns")
                    )
                produced.append({**row, **item} if self.merges else dict(item))
        return rows_to_batch(produced)

    def _code(self) -> Any:
        return self.function

    def _call(self, row: dict[str, Any], at: int) -> Any:
        try:
            return self.function(row)
        except Exception as error:
            raise RowFailure(at, error) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class RowFailure(Exception):  # noqa: N818 - it wraps the error, it is not the error
    """Tells the stage runner which row of the batch caused ``error``."""

    def __init__(self, row: int, error: BaseException) -> None:
        super().__init__(row, error)
        self.row = row
        self.error = error


def rows_to_batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """A RecordBatch of dicts: columns are the union of keys, absent values are null."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.RecordBatch.from_pydict(columns)


@dataclass(frozen=True)
class _Declaration:
    attributes: dict[str, Any] = field(default_factory=dict)

    def __call__(self, target: Any) -> Any:
        if isinstance(target, type):
            if not issubclass(target, Operator):
                target = type(
                    target.__name__,
                    (target, Operator),
                    {"__module__": target.__module__, "__qualname__": target.__qualname__},
                )
                if "__init__" not in target.__dict__ and target.__init__ is not object.__init__:
                    target.__init__ = _remember_params(target.__init__)
            for key, value in self.attributes.items():
                setattr(target, key, value)
            return target
        given = dict(self.attributes)
        kind = given.pop("kind", "map")
        made = FunctionOperator(
            target, kind, given.pop("name"), given.pop("reads", ()), given.pop("adds", None)
        )
        for key, value in given.items():
            setattr(made, key, value)
        return made


_DECLARABLE = frozenset(
    {"reads", "expects", "adds", "cardinality", "resources", "batch_size", "retry_on", "row_cost_s"}
    | {"version", "kind"}
)


def operator(name: str, **attributes: Any) -> _Declaration:
    """Declare a class (``setup``/``process``/``close``) or a row function to be an operator.

    Example:
        >>> @operator("shout", reads=("text",), adds=("loud",))
        ... def shout(row):
        ...     return {"loud": row["text"].upper()}
        >>> shout.name, shout.adds
        ('shout', ('loud',))

    Args:
        name: shows in plans, task names and errors.
        attributes: those of :class:`Operator`; for a function also ``kind`` (see
            :class:`FunctionOperator`).

    Raises:
        GraphError: an attribute that operators do not have.
    """
    for key in attributes:
        if key not in _DECLARABLE:
            raise GraphError(
                f"@operator({name!r}) got unknown {key!r}.",
                hint=f"Known: {', '.join(sorted(_DECLARABLE))}.",
            )
    for key in ("reads", "adds"):
        if isinstance(attributes.get(key), str):
            raise GraphError(
                f"@operator({name!r}): {key}={attributes[key]!r} is no tuple of columns.",
                hint=f"Write {key}=({attributes[key]!r},).",
            )
    return _Declaration({"name": name, **attributes})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
