"""``ReadSql``: the rows of a query."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sage_prefect.common.errors import GraphError, RecordError
from sage_prefect.kernel.operator import rows_to_batch
from sage_prefect.kernel.source import Source, SourcePart
from sage_prefect.middleware.sql import engine, hidden, sqlalchemy

_BATCH_ROWS = 1024


class ReadSql(Source):
    """Read a query's rows through SQLAlchemy, in one part, or in ranges of a column.

    Args:
        query: a SELECT.
        url: ``dialect://user:password@host/name``, or ``os.environ/NAME``: what that variable
            holds, here and on the workers.
        split_by: a column of whole numbers: each part reads a range of it. Rows come in the order
            of the ranges; give the query an ORDER BY only without it.
        parts: how many ranges.
        version: changes when the data does. With it finished partitions of an interrupted run are
            reused; None: the database is read anew by each run.

    Raises:
        GraphError: an argument cannot work (the URL, ``parts`` without ``split_by``).
        RecordError: the database cannot be reached, or refuses the query (when it runs).
        MissingDependencyError: SQLAlchemy is not installed.
    """

    name = "read-sql"

    def __init__(
        self,
        query: str,
        url: str,
        split_by: str | None = None,
        parts: int = 8,
        version: str | None = None,
    ) -> None:
        if not query.strip():
            raise GraphError("ReadSql got an empty query.", hint="Give it a SELECT.")
        if parts < 1:
            raise GraphError(f"ReadSql(parts={parts}) is not positive.", hint="Use 1 or more.")
        self.query = query.strip().rstrip(";")
        self.url = url
        self.split_by = split_by
        self.count = parts
        self.data_version = version

    def __repr__(self) -> str:
        return f"ReadSql({self.query!r}, {hidden(self.url)!r})"

    def key_params(self) -> Mapping[str, Any]:
        return {}  # the parts' keys tell what is read

    def output_columns(self, columns: Sequence[str] = ()) -> tuple[str, ...] | None:
        try:
            with engine(self.url).connect() as connection:
                found = connection.execute(self._select().where(sqlalchemy().false()))
                return tuple(found.keys())
        except sqlalchemy().exc.SQLAlchemyError:
            return None  # the run will say what is wrong with it

    def parts(self) -> Sequence[SourcePart]:
        version = self.data_version if self.data_version is not None else uuid.uuid4().hex
        key = f"sql|{hidden(self.url)}|{self.query}|{version}"
        if self.split_by is None:
            return [SourcePart(key, None, "all rows", 1000.0)]
        low, high = self._bounds()
        if low is None or high is None:
            return [SourcePart(key, None, "all rows")]
        size = max(1, -(-(high - low + 1) // self.count))
        return [
            SourcePart(
                f"{key}|{start}|{start + size}",
                (start, min(start + size, high + 1), start == low),
                f"{self.split_by} {start}..{min(start + size, high + 1) - 1}",
                1000.0,
            )
            for start in range(low, high + 1, size)
        ]

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        sa = sqlalchemy()
        select = self._select()
        if part.spec is not None:
            start, stop, first = part.spec
            column = sa.column(self.split_by)
            within = sa.and_(column >= start, column < stop)
            # Rows without a number belong to some part, too.
            select = select.where(sa.or_(within, column.is_(None)) if first else within)
        try:
            with engine(self.url).connect() as connection:
                found = connection.execution_options(stream_results=True).execute(select)
                for rows in found.mappings().partitions(_BATCH_ROWS):
                    yield rows_to_batch([dict(row) for row in rows])
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from error

    def _bounds(self) -> tuple[int | None, int | None]:
        sa = sqlalchemy()
        column = sa.column(self.split_by)
        bounds = self._select(sa.func.min(column), sa.func.max(column))
        try:
            with engine(self.url).connect() as connection:
                low, high = connection.execute(bounds).one()
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from error
        for value in (low, high):
            if value is not None and not isinstance(value, int):
                raise GraphError(
                    f"ReadSql(split_by={self.split_by!r}): the column holds {value!r}, "
                    "not whole numbers.",
                    hint="Split by a whole number, such as the primary key.",
                )
        return low, high

    def _select(self, *columns: Any) -> Any:
        sa = sqlalchemy()
        table = sa.text(f"({self.query}) AS q")
        return sa.select(*(columns or (sa.text("*"),))).select_from(table)

    def _failed(self, error: Exception) -> RecordError:
        cause = getattr(error, "orig", None) or error
        return RecordError(
            f"database {hidden(self.url)}: {type(cause).__name__}: {cause}.",
            hint=f"The query is: {self.query[:200]}",
        )
