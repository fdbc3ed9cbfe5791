"""``Pipeline``: declared dataflow, checked while it is built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sage_prefect.common.errors import GraphError, MissingColumnError
from sage_prefect.common.paths import state_dir
from sage_prefect.kernel.declaration import declared_at, locates
from sage_prefect.kernel.explain import mermaid, text
from sage_prefect.kernel.graph import Chain, Feed
from sage_prefect.kernel.kinds import check_kinds
from sage_prefect.kernel.operator import (
    FunctionOperator,
    Operator,
    OperatorContext,
    PartitionOperator,
)
from sage_prefect.kernel.plan import OnError, Plan, Step
from sage_prefect.kernel.planner import plan
from sage_prefect.kernel.relational_steps import RelationalSteps
from sage_prefect.kernel.report import RunReport
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.sink import Sink
from sage_prefect.kernel.source import CollectionSource, Source

_BANDS = ("critical", "interactive", "standard", "batch")
_ON_ERROR = ("fail", "retry", "dead_letter")


class Pipeline(RelationalSteps):
    """Source -> operators -> sink. Each call returns a new pipeline; none runs anything.

    Example:
        >>> report = (
        ...     Pipeline("shout")
        ...     .source([{"text": "hello"}, {"text": "world"}])
        ...     .map(lambda row: {"loud": row["text"].upper()}, reads=("text",), adds=("loud",))
        ...     .sink()
        ...     .run()
        ... )
        >>> report.committed.data.column("loud").to_pylist()
        ['HELLO', 'WORLD']

    Args:
        name: shows in Prefect, logs and errors.
        band: urgency of its inference calls: critical, interactive, standard or batch.
        tenant: who is charged for its inference calls.
        deadline_ms: time that its inference calls may take.

    Raises:
        GraphError: the name is empty or the band unknown.
    """

    def __init__(
        self,
        name: str,
        *,
        band: str | None = None,
        tenant: str | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        if not name or not name.strip():
            raise GraphError(f"Pipeline name {name!r} is empty.", hint="Give it a name.")
        if band is not None and band not in _BANDS:
            raise GraphError(f"band {band!r} is unknown.", hint=f"Known: {', '.join(_BANDS)}.")
        self.name = name
        self.context = OperatorContext(name, "", band, tenant, deadline_ms)
        self._source: Source | None = None
        self._source_on_error: OnError = "retry"
        self._steps: tuple[Step, ...] = ()
        self._sink: Sink | None = None
        # Columns after the source and after each step; None: not known before the run.
        self._columns: tuple[tuple[str, ...] | None, ...] = ()
        self._kinds: dict[str, str] = {}
        # What the exchange before the current chain reads; the chain's source then reads that.
        self._feeds: tuple[Feed, ...] = ()
        self._names: frozenset[str] = frozenset()
        self._keys: tuple[str, ...] = ()
        # Columns whose equal values are in one partition: () all rows are, None nothing is known.
        self._together: tuple[str, ...] | None = None

    # -- building -------------------------------------------------------------------------

    @locates
    def source(
        self, source: Source | Sequence[Mapping[str, Any]] | Any, *, on_error: OnError = "retry"
    ) -> Pipeline:
        """Read from ``source``: a :class:`Source`, or a sequence of dicts.

        Under ``on_error="dead_letter"`` a part that cannot be read is set aside.
        """
        if self._source is not None:
            raise GraphError(
                f"pipeline {self.name!r} has a source already: {self._source!r}.",
                hint="A pipeline has one source.",
            )
        if isinstance(source, Source):
            chosen = source
        elif isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
            chosen = CollectionSource(source)
        else:
            raise GraphError(
                f"{source!r} is not a source.",
                hint="Use ReadFiles(...), PythonDocs(), or a list of dicts.",
            )
        made = self._copy()
        made._source = chosen
        made._source_on_error = _checked(on_error)
        made._columns = (chosen.output_columns(()),)
        made._kinds = chosen.output_kinds({})
        return made

    @locates
    def map(
        self,
        operator: Operator | Callable[..., Any],
        *,
        reads: tuple[str, ...] = (),
        adds: tuple[str, ...] | None = None,
        name: str | None = None,
        resources: Resources | None = None,
        on_error: OnError = "retry",
    ) -> Pipeline:
        """Apply an operator, or a function from row (dict) to dict.

        With ``adds`` the dict's columns join the row; without, the dict replaces the row.
        """
        return self._add(operator, "map", reads, adds, name, resources, on_error)

    @locates
    def flat_map(
        self,
        function: Operator | Callable[..., Any],
        *,
        reads: tuple[str, ...] = (),
        adds: tuple[str, ...] | None = None,
        name: str | None = None,
        resources: Resources | None = None,
        on_error: OnError = "retry",
    ) -> Pipeline:
        """Apply a function from row to any number of dicts."""
        return self._add(function, "flat_map", reads, adds, name, resources, on_error)

    @locates
    def map_batches(
        self,
        function: Operator | Callable[..., Any],
        *,
        reads: tuple[str, ...] = (),
        name: str | None = None,
        resources: Resources | None = None,
        on_error: OnError = "retry",
    ) -> Pipeline:
        """Apply a function from ``pyarrow.RecordBatch`` to one, or to several."""
        return self._add(function, "batches", reads, None, name, resources, on_error)

    @locates
    def filter(
        self,
        function: Operator | Callable[..., bool],
        *,
        reads: tuple[str, ...] = (),
        name: str | None = None,
        resources: Resources | None = None,
        on_error: OnError = "retry",
    ) -> Pipeline:
        """Keep the rows for which ``function(row)`` is true."""
        return self._add(function, "filter", reads, None, name, resources, on_error)

    @locates
    def sink(self, sink: Sink | None = None) -> Pipeline:
        """End in ``sink``; without one, collect the rows in memory."""
        from sage_prefect.kernel.sink import Collect

        chosen = sink if sink is not None else Collect()
        if not isinstance(chosen, Sink):
            raise GraphError(f"{sink!r} is not a sink.", hint="Use WriteVectors(...) or the like.")
        self._open_for(chosen.name)
        self._check_columns(chosen)
        made = self._copy()
        made._sink = chosen
        return made

    # -- using ----------------------------------------------------------------------------

    @locates
    def plan(self, *, partitions: int | None = None, exchange_dir: str | None = None) -> Plan:
        """List the sources and decide stages and partitions.

        Args:
            exchange_dir: where rows are staged that change partitions; None: in the state
                directory. Workers and the process that runs the pipeline share it.

        Raises:
            GraphError: source or sink is missing.
            EmptySourceError: the source has nothing to read.
        """
        if self._source is None or self._sink is None:
            missing = "source" if self._source is None else "sink"
            raise GraphError(
                f"pipeline {self.name!r} has no {missing}.", hint=f"Add .{missing}(...) to it."
            )
        return plan(
            self.name,
            self._chain(),
            self._sink,
            self.context,
            partitions,
            self._columns,
            exchange_dir or str(state_dir() / "exchanges"),
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where rows come from, those of joined pipelines included."""
        return () if self._source is None else self._chain().sources()

    def explain(self, *, partitions: int | None = None, style: str = "text") -> str:
        """The plan, for people: stages, fusion, partitions, placement, estimated cost.

        Args:
            style: ``"text"``, or ``"mermaid"`` for a diagram.
        """
        made = self.plan(partitions=partitions)
        return mermaid(made) if style == "mermaid" else text(made)

    def run(self, **options: Any) -> RunReport:
        """Run in this process. Options are those of
        :meth:`sage_prefect.kernel.local_runner.LocalRunner.run`."""
        from sage_prefect.kernel.runners import runner

        return runner("local").run(self, **options)

    def to_flow(self, **options: Any) -> Any:
        """A Prefect flow of this pipeline: call it, ``.serve()`` it or deploy it. Options are
        those of the ``prefect`` runner."""
        from sage_prefect.kernel.runners import runner

        return runner("prefect").to_flow(self, **options)

    def __repr__(self) -> str:
        chain: Iterable[Operator | None] = (
            self._source,
            *(step.operator for step in self._steps),
            self._sink,
        )
        return f"Pipeline({self.name!r}: {' -> '.join(op.name for op in chain if op)})"

    # -- inside ---------------------------------------------------------------------------

    def _chain(self) -> Chain:
        if self._source is None:
            raise GraphError(
                f"pipeline {self.name!r} has no source.", hint="Start with .source(...)."
            )
        return Chain(self._source, self._source_on_error, self._steps, self._feeds)

    def _add(
        self,
        target: Operator | Callable[..., Any],
        kind: Any,
        reads: tuple[str, ...],
        adds: tuple[str, ...] | None,
        name: str | None,
        resources: Resources | None,
        on_error: OnError,
    ) -> Pipeline:
        if isinstance(target, (Source, Sink)):
            raise GraphError(f"{target!r} is no step.", hint="Use .source(...) or .sink(...).")
        if isinstance(target, Operator):
            if reads or adds is not None:
                raise GraphError(
                    f"operator {target.name!r} declares its own columns.",
                    hint="Leave out reads= and adds=.",
                )
            operator = target
        elif isinstance(target, type) and issubclass(target, Operator):
            raise GraphError(
                f"{target.__name__} is a class.", hint=f"Write {target.__name__}(...)."
            )
        else:
            operator = FunctionOperator(target, kind, name, reads, adds)
        if on_error == "dead_letter" and isinstance(operator, PartitionOperator):
            raise GraphError(
                f"operator {operator.name!r} works on whole partitions: there is no row to set "
                "aside.",
                hint='Use on_error="fail" or "retry".',
            )
        self._open_for(operator.name)
        operator = self._uniquely_named(operator)
        self._check_columns(operator)
        wish = resources if resources is not None else operator.resources
        step = Step(operator, wish, _checked(on_error), declared_at())
        before = self._columns[-1]
        # A replaced row may have any columns; what an aggregate or an annotation names is known.
        after = operator.output_columns(before or ())
        if before is None and not operator.replaces:
            after = None
        made = self._copy()
        made._steps = (*self._steps, step)
        made._columns = (*self._columns, after)
        made._kinds = operator.output_kinds(self._kinds)
        made._names = self._names | {operator.name}
        kept = after is not None and not set(operator.adds) & set(self._together or ())
        if not kept and self._together:
            made._together = None
        return made

    def _uniquely_named(self, operator: Operator) -> Operator:
        """Reports are by operator name: a second ``embed`` becomes ``embed-2``."""
        used = self._names
        if operator.name not in used:
            return operator
        renamed = copy.copy(operator)
        numbers = (f"{operator.name}-{n}" for n in range(2, len(used) + 3))
        renamed.name = next(name for name in numbers if name not in used)
        return renamed

    def _open_for(self, name: str) -> None:
        if self._source is None:
            raise GraphError(
                f"operator {name!r} comes before any source.", hint="Start with .source(...)."
            )
        if self._sink is not None:
            raise GraphError(
                f"operator {name!r} comes after sink {self._sink.name!r}.",
                hint="A pipeline ends with its sink.",
            )

    def _check_columns(self, operator: Operator) -> None:
        check_kinds(operator.name, operator.expects, self._kinds)
        columns = self._columns[-1]
        if columns is None:
            return
        for column in operator.reads:
            if column not in columns:
                raise MissingColumnError(operator.name, column, columns)

    def _copy(self) -> Pipeline:
        made = object.__new__(Pipeline)
        made.__dict__.update(self.__dict__)
        return made


def _checked(on_error: OnError) -> OnError:
    if on_error not in _ON_ERROR:
        raise GraphError(
            f"on_error={on_error!r} is unknown.", hint=f"Known: {', '.join(_ON_ERROR)}."
        )
    return on_error
