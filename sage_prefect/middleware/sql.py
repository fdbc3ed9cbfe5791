"""What the SQL source and the SQL sink share: the connection, and types."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from sage_prefect.common.errors import GraphError, MissingDependencyError

_ENVIRON = "os.environ/"


def sqlalchemy() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import sqlalchemy as found
    except ModuleNotFoundError:
        raise MissingDependencyError("sqlalchemy", "sql", "reading and writing SQL") from None
    return found


def resolved(url: str) -> str:
    """``url``, or what the environment variable holds that ``os.environ/NAME`` names.

    Raises:
        GraphError: the variable is not set.
    """
    if not url.startswith(_ENVIRON):
        return url
    name = url[len(_ENVIRON) :]
    if not os.environ.get(name):
        raise GraphError(
            f"the database URL is to come from the environment variable {name}, which is not set.",
            hint="Set it where the pipeline is run and on the workers.",
        )
    return os.environ[name]


def engine(url: str) -> Any:
    """An engine without a pool: connections do not outlive their use.

    Raises:
        GraphError: the URL is none, or its driver is not installed.
    """
    sa = sqlalchemy()
    try:
        return sa.create_engine(resolved(url), poolclass=sa.pool.NullPool)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise GraphError(
            f"database URL {hidden(url)} cannot be used: {type(error).__name__}: {error}.",
            hint="Write dialect://user:password@host/name, and install the dialect's driver.",
        ) from error


def hidden(url: str) -> str:
    """``url`` without its password."""
    if url.startswith(_ENVIRON):
        return url
    try:
        return str(sqlalchemy().make_url(url).render_as_string(hide_password=True))
    except Exception:  # noqa: BLE001 - what is no URL may still hold a password
        return "(not shown)"


def column_type(kind: pa.DataType) -> Any:
    """The SQL type of an Arrow type; lists and structs become JSON text."""
    sa = sqlalchemy()
    types = pa.types
    if types.is_boolean(kind):
        return sa.Boolean()
    if types.is_integer(kind):
        return sa.BigInteger()
    if types.is_floating(kind):
        return sa.Double()
    if types.is_decimal(kind):
        return sa.Numeric(kind.precision, kind.scale)
    if types.is_timestamp(kind):
        return sa.DateTime(timezone=kind.tz is not None)
    if types.is_date(kind):
        return sa.Date()
    if types.is_binary(kind) or types.is_large_binary(kind):
        return sa.LargeBinary()
    return sa.Text()
