"""Reading an event log, with the file that was rotated away before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.platform.event_log_lines import (
    LogHeader,
    LogStep,
    previous_file,
    read_header,
    read_step,
)


class EventLog:
    """A recorded log; iterating reads it from its beginning, step by step.

    Args:
        files: in order.
        header: of the first of them.
    """

    def __init__(self, files: tuple[Path, ...], header: LogHeader) -> None:
        self.files = files
        self.header = header
        self.torn = False
        """Whether the last read ended in a half-written line, as after a crash; it was left out."""

    def __iter__(self) -> Iterator[LogStep]:
        """Read the steps.

        Raises:
            CorruptFileError: a line is damaged, or steps are missing between the files.
        """
        self.torn = False
        step = self.header.first_step
        for path in self.files:
            with path.open("rb") as file:
                header = read_header(path, file.readline())
                if header.first_step != step:
                    raise CorruptFileError(
                        f"the event log {str(path)!r} begins at step {header.first_step}; "
                        f"the file before it ends at {step}."
                    )
                for number, line in enumerate(file, 2):
                    if not line.endswith(b"\n"):
                        self.torn = True
                        break
                    yield read_step(path, number, line)
                    step += 1


def read_log(path: Path) -> EventLog:
    """A log by the name that its writer was given.

    Raises:
        CorruptFileError: it is missing, or its first line is damaged or of another version.
    """
    previous = previous_file(path)
    files: tuple[Path, ...] = (path,)
    if previous.exists() and not _is_begun(path):
        files = (previous,)  # its writer died between two files
    header = _open_header(files[0])
    if header.first_step and files == (path,) and previous.exists():
        files = (previous, path)
        header = _open_header(previous)
    return EventLog(files, header)


def _is_begun(path: Path) -> bool:
    """Whether a file has got its first line."""
    try:
        with path.open("rb") as file:
            return file.readline().endswith(b"\n")
    except OSError:
        return False


def _open_header(path: Path) -> LogHeader:
    try:
        with path.open("rb") as file:
            return read_header(path, file.readline())
    except OSError as error:
        raise CorruptFileError(
            f"the event log {str(path)!r} cannot be read ({error.strerror})."
        ) from None
