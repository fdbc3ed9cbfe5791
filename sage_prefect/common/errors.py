"""The one error hierarchy of SAGE.

A message names the thing, the value it had and the way out; ``hint`` carries the way out
separately, so that the CLI can set it apart. Everything that SAGE raises on purpose is a
:class:`SageError`; a caller that wants to retry asks :func:`is_retryable`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SageError(Exception):
    """Base of all errors that SAGE raises on purpose.

    Args:
        message: what went wrong: the thing, its value, what was expected.
        hint: what the reader can do about it (shown on a line of its own).
    """

    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Dask, Prefect): rebuild from state, not from args.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[SageError], state: dict[str, object]) -> SageError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    Exception.__init__(error, state.get("message", ""))
    return error


# -- configuration ------------------------------------------------------------------------


class SettingsError(SageError):
    """A settings file, an environment variable or a CLI option is wrong."""


class UnknownNameError(SageError):
    """A name (policy, operator, driver, model...) is not among the known ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.what, self.name, self.known = what, name, tuple(sorted(known))
        super().__init__(
            f"unknown {what} {name!r}.",
            hint=f"{near_name(name, self.known)}Known: {', '.join(self.known) or 'none'}.",
        )


class MissingDependencyError(SageError):
    """An optional package is needed that is not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(
            f"{why} needs the package {package!r}, which is not installed.",
            hint=f"Install it with: pip install 'sage-prefect[{extra}]'",
        )


# -- services and engines -----------------------------------------------------------------


class ServiceError(SageError):
    """A supervised service could not be started, reached or stopped."""


class PortInUseError(ServiceError):
    """An explicitly chosen port is taken."""


class EngineError(SageError):
    """An inference engine (or the gateway before it) failed a request."""


class EngineUnavailable(EngineError):  # noqa: N818 - the field's term
    """No engine can be reached: connection refused, reset, or 502/503."""

    retryable = True


class EngineTimeout(EngineError):  # noqa: N818 - the field's term
    """An engine did not answer within the time limit."""

    retryable = True


class EngineOverloaded(EngineError):  # noqa: N818 - the field's term
    """The gateway or the engine refused for load (429); ``retry_after`` is in seconds."""

    retryable = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class RequestRejected(EngineError):  # noqa: N818 - the field's term
    """The request itself is wrong (400, 401, 404, 413...): repeating it is no use."""

    def __init__(
        self, message: str, *, status: int, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class ModelNotFoundError(SageError):
    """A model is neither installed nor in the catalog, or its file fails its checksum."""


# -- pipelines ----------------------------------------------------------------------------


class PipelineError(SageError):
    """A pipeline is built wrongly or failed while it ran."""


class GraphError(PipelineError):
    """The dataflow graph is not runnable (no source, operator after a sink, ...)."""


class MissingColumnError(GraphError):
    """An operator reads a column that nothing upstream provides."""

    def __init__(self, operator: str, column: str, available: Sequence[str]) -> None:
        self.operator, self.column, self.available = operator, column, tuple(available)
        near = near_name(column, available)
        super().__init__(
            f"operator {operator!r} reads column {column!r}, which is not there.",
            hint=f"{near}Columns at this point: {', '.join(available) or 'none'}.",
        )


class EmptySourceError(PipelineError):
    """A source has nothing to read."""


class RecordError(PipelineError):
    """One input record cannot be processed (unreadable file, broken line, ...)."""


class OperatorError(PipelineError):
    """An operator failed; names the operator, the partition and, if known, the row."""

    def __init__(
        self,
        operator: str,
        cause: str,
        *,
        partition: str | None = None,
        row: int | None = None,
        retryable: bool = False,
        hint: str | None = None,
    ) -> None:
        self.operator, self.partition, self.row = operator, partition, row
        self.retryable = retryable
        where = f" in partition {partition}" if partition else ""
        where += f", row {row}" if row is not None else ""
        super().__init__(f"operator {operator!r} failed{where}: {cause}", hint=hint)


class UnschedulableError(PipelineError):
    """A resource wish that no worker of the cluster can ever meet."""


class AccountingError(PipelineError):
    """Rows were lost or doubled at a stage edge. This is a bug in SAGE or in an operator."""


class ClusterError(SageError):
    """A Dask cluster could not be started or reached, or it lost its workers."""


# -- files --------------------------------------------------------------------------------


class CorruptFileError(SageError):
    """A file of ours is damaged or of an unknown format version."""


class VectorIndexError(SageError):
    """A vector index is missing or was used wrongly."""


# -- benchmarks ---------------------------------------------------------------------------


class BenchmarkError(SageError):
    """A benchmark cannot be run, or its result cannot be reported or compared."""


def is_retryable(error: BaseException) -> bool:
    """Whether repeating the same call may succeed (timeouts, 429, 5xx, lost connections)."""
    if isinstance(error, SageError):
        return error.retryable
    # By name too: until Python 3.11 asyncio's and concurrent.futures' TimeoutError are others.
    return (
        isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ == "TimeoutError"
    )


def near_name(name: str, known: Iterable[str]) -> str:
    """``"Did you mean 'x'? "`` when a known name is close to ``name``, else ``""``."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? " if close else ""
