"""``WriteSql``: rows into a table, in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa

from sage_prefect.common.errors import GraphError, PipelineError
from sage_prefect.common.paths import data_dir
from sage_prefect.kernel.sink import Committed, Receipt, Sink
from sage_prefect.middleware.sql import column_type, engine, hidden, sqlalchemy
from sage_prefect.middleware.staging import batches_of, conform, discard, open_arrow, stage, unify

#: Names what has been committed, so that a commit that is repeated after a crash adds nothing.
COMMITS = "sage_commits"


class WriteSql(Sink):
    """Write rows into one table through SQLAlchemy.

    Partitions are staged as files; the commit is one transaction: readers see all rows or none, and
    a commit that is repeated after a crash adds nothing (its mark is in the table
    ``sage_commits``). A table that does not exist is made; lists and structs become JSON text.

    Args:
        table: its name.
        url: as for :class:`~sage_prefect.middleware.read_sql.ReadSql`.
        mode: ``"replace"``: the rows that are there go; ``"append"``: they stay.

    Raises:
        GraphError: an argument cannot work, or a column has types that do not go together.
        PipelineError: the database refuses the rows (when they are committed).
        MissingDependencyError: SQLAlchemy is not installed.
    """

    name = "write-sql"

    def __init__(
        self, table: str, url: str, mode: Literal["replace", "append"] = "replace"
    ) -> None:
        if not table:
            raise GraphError("WriteSql got an empty table name.", hint="Give it a name.")
        if mode not in ("replace", "append"):
            raise GraphError(f"WriteSql(mode={mode!r}) is unknown.", hint="Known: replace, append.")
        self.table = table
        self.url = url
        self.mode = mode

    def __repr__(self) -> str:
        return f"WriteSql({self.table!r}, {hidden(self.url)!r}, mode={self.mode!r})"

    @property
    def staging(self) -> Path:
        """Where partitions are staged."""
        place = hashlib.blake2b(f"{self.url}|{self.table}".encode(), digest_size=8).hexdigest()
        return data_dir() / "sql-staging" / place

    def write(self, partition: str, index: int, batches: Iterator[pa.RecordBatch]) -> Receipt:
        file, rows = stage(self.staging, partition, batches)
        return Receipt(partition, index, rows, str(file) if rows else "")

    def holds(self, receipt: Receipt) -> bool:
        return not receipt.rows or Path(receipt.location).is_file()

    def commit(self, receipts: Sequence[Receipt]) -> Committed:
        sa = sqlalchemy()
        files = [Path(r.location) for r in sorted(receipts, key=lambda r: r.index) if r.rows]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise PipelineError(
                f"sink {self.name!r}: staged file {missing} is gone.",
                hint="Workers and the process that commits must share the folder. Run again.",
            )
        mark = _mark(files)
        try:
            rows = self._transact(files, mark)
        except sa.exc.SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise PipelineError(
                f"database {hidden(self.url)} refuses the rows of table {self.table!r}: "
                f"{type(cause).__name__}: {cause}.",
                hint="The table is as it was. If its columns have changed, drop or alter it.",
            ) from error
        discard(self.staging, files)
        return Committed(rows, f"{hidden(self.url)}#{self.table}", {"mark": mark})

    def _transact(self, files: list[Path], mark: str) -> int:
        sa = sqlalchemy()
        schema = unify([open_arrow(file).schema for file in files], self.table)
        metadata = sa.MetaData()
        table = sa.Table(
            self.table, metadata, *(sa.Column(f.name, column_type(f.type)) for f in schema)
        )
        commits = sa.Table(
            COMMITS,
            metadata,
            sa.Column("mark", sa.String(64), primary_key=True),
            sa.Column("table_name", sa.String(255)),
            sa.Column("row_count", sa.BigInteger()),
        )
        database = engine(self.url)
        wanted = [commits, table] if len(schema) else [commits]
        metadata.create_all(database, tables=wanted)
        with database.begin() as connection:
            known = connection.execute(
                sa.select(commits.c.row_count).where(commits.c.mark == mark)
            ).scalar()
            # No rows have no mark: emptying a table again does no harm.
            if known is not None and files:
                return int(known)
            if self.mode == "replace" and sa.inspect(connection).has_table(self.table):
                connection.execute(sa.delete(sa.table(self.table)))
            rows = 0
            for file in files:
                for batch in batches_of(open_arrow(file)):
                    values = [_plain(row) for row in conform(batch, schema).to_pylist()]
                    connection.execute(sa.insert(table), values)
                    rows += len(values)
            if files:
                connection.execute(
                    sa.insert(commits), {"mark": mark, "table_name": self.table, "row_count": rows}
                )
        return rows


def _mark(files: list[Path]) -> str:
    """Names these staged files: the same when a commit is repeated, another when staged anew."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}|{status.st_size}|{status.st_mtime_ns}|".encode())
    return digest.hexdigest()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: orjson.dumps(value, default=str).decode()
        if isinstance(value, (list, dict))
        else value
        for name, value in row.items()
    }
