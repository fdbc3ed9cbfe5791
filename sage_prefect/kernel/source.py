"""Where rows come from: a source lists parts cheaply and reads one part at a time on a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sage_prefect.common.errors import EmptySourceError
from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.kinds import kinds_of
from sage_prefect.kernel.operator import Operator, rows_to_batch

_PEEKED_ROWS = 256


@dataclass(frozen=True)
class SourcePart:
    """The smallest unit that a source reads on its own (a file, a range of rows).

    Args:
        key: changes when the content changes (path + size + mtime, or a hash). Finished
            partitions are found again by it.
        spec: what :meth:`Source.read` needs; small and picklable.
        label: for people: a path, a module name.
        weight: relative size (bytes or rows), for balanced partitions.
        rows: expected number of rows, if known.
    """

    key: str
    spec: Any
    label: str
    weight: float = 1.0
    rows: int | None = None


class Source(Operator):
    """Base of all sources. ``adds`` are the columns that its batches have.

    ``read`` must give the same rows in the same order each time for the same part.
    """

    #: Expected seconds to read and process a unit of ``SourcePart.weight``; for partition sizes.
    weight_cost_s: float = 1e-6

    def parts(self) -> Sequence[SourcePart]:
        """List the parts, in a stable order, without reading them. Runs where the run is started.

        Raises:
            EmptySourceError: there is nothing to read.
        """
        raise TypeError(f"source {self.name!r} defines no parts().")

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        """Read one part. Runs on a worker.

        Raises:
            RecordError: the part cannot be read; names it and says why.
        """
        raise TypeError(f"source {self.name!r} defines no read(part).")

    def read_all(
        self,
        parts: Sequence[SourcePart],
        on_failure: Callable[[SourcePart, Exception], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Read several parts; with ``on_failure`` a part that fails is reported and left out."""
        for part in parts:
            try:
                yield from self.read(part)
            except Exception as error:
                if on_failure is None:
                    raise
                on_failure(part, error)

    def output_columns(self, columns: Sequence[str] = ()) -> tuple[str, ...] | None:
        return self.adds


class CollectionSource(Source):
    """Rows (dicts) that are in memory already: for tests, small inputs and notebooks.

    Args:
        rows: dicts with the same keys.
        rows_per_part: rows of one part.

    Raises:
        EmptySourceError: ``rows`` is empty (when the run starts).
    """

    name = "collection"

    def __init__(self, rows: Sequence[Mapping[str, Any]], rows_per_part: int = 64) -> None:
        self.rows = list(rows)
        self.rows_per_part = rows_per_part
        names: dict[str, None] = {}
        for row in self.rows:
            names.update(dict.fromkeys(row))
        self.adds = tuple(names)

    def output_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        # A look at the first rows tells the kind: a column of several kinds cannot be read at all.
        return kinds_of(rows_to_batch(self.rows[:_PEEKED_ROWS]).schema) if self.rows else {}

    def parts(self) -> Sequence[SourcePart]:
        if not self.rows:
            raise EmptySourceError("the collection has no rows.", hint="Give at least one row.")
        made = []
        for start in range(0, len(self.rows), self.rows_per_part):
            rows = [dict(row) for row in self.rows[start : start + self.rows_per_part]]
            label = f"rows {start}..{start + len(rows) - 1}"
            made.append(SourcePart(fingerprint(rows), rows, label, len(rows), len(rows)))
        return made

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        yield rows_to_batch(part.spec)

    def key_params(self) -> Mapping[str, Any]:
        return {}  # what is read is in the parts' keys

    def __reduce__(self) -> tuple[Any, ...]:
        # Each part carries its own rows: the whole collection need not travel with every task.
        return (type(self), ((), self.rows_per_part), {"adds": self.adds})
