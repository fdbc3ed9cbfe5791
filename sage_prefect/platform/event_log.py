"""Recording what a control plane was told and decided, and replaying it.

A log is a file of JSON lines. The first is ``{"v", "type": "Log", "first_step", "settings"}``, the
others are ``{"v", "type": "Step", "at", "event", "actions"}``: an event, the driver's clock in
seconds, and what the manager answered. Events carry no prompt text, so logs have none; they have
tenants' names, request and session ids and hashes of prompts, and only their owner may read them.

A log is bounded: at half of its size it moves to ``NAME.1`` and goes on in a new file. What was in
``NAME.1`` is lost then; the rest can be read, but decisions can only be replayed from the first. A
writer that does not rotate ends at its size instead, and what it wrote can always be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Action, Event
from sage_prefect.platform.event_log_lines import (
    LogHeader,
    LogStep,
    header_line,
    previous_file,
    step_line,
)
from sage_prefect.platform.event_log_reader import EventLog, read_log
from sage_prefect.platform.event_replay import Difference, Replay, replay

DEFAULT_MAX_BYTES = 256 << 20
LEAST_MAX_BYTES = 64 << 10

_BUFFER = 64 << 10


class EventLogWriter:
    """Records steps; never harms what it records.

    An existing file moves to ``NAME.1`` first. Lines are written in pieces of 64 KB; a driver that
    wants them sooner calls :meth:`flush`. When the disk is full, or a step cannot be written, the
    writer stops for good and says so once: a log with a gap could not be replayed.

    Args:
        path: its folder exists.
        settings: see :class:`LogHeader`.
        max_bytes: of both files together; at least ``LEAST_MAX_BYTES``.
        rotate: go on in a new file when this one is full; else stop recording.
        on_stop: called once with the reason when recording stops by itself.

    Raises:
        SettingsError: the file cannot be opened, ``max_bytes`` is too small, or ``settings`` is
            no JSON.
    """

    def __init__(
        self,
        path: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        rotate: bool = True,
        on_stop: Callable[[str], None] | None = None,
    ) -> None:
        if max_bytes < LEAST_MAX_BYTES:
            raise SettingsError(
                f"an event log of {max_bytes} bytes is too small.",
                hint=f"Allow at least {LEAST_MAX_BYTES}.",
            )
        self.path = path
        self.steps = 0
        """Steps recorded so far; the last ones may not be on disk yet."""
        self.stopped: str | None = None
        """Why recording ended by itself; None: it did not."""
        self._settings = dict(settings or {})
        self._max_bytes = max_bytes
        self._rotate = rotate
        self._limit = max_bytes // 2 if rotate else max_bytes
        """Bytes of one file."""
        self._on_stop = on_stop
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        self._pending = 0
        self._size = 0
        if len(_header_of(self._settings)) > self._limit // 2:
            raise SettingsError("the settings for the head of the event log are too long.")
        try:
            if path.exists() and not path.is_file():
                raise SettingsError(f"the event log {str(path)!r} is no regular file.")
            self._begin()
        except OSError as error:
            raise SettingsError(
                f"the event log {str(path)!r} cannot be opened ({error.strerror}).",
                hint="Name a file in an existing folder that may be written to.",
            ) from None

    def record(self, event: Event, now: float, actions: Iterable[Action]) -> None:
        """Take a step down, exactly as it went into and out of the manager."""
        if self._file is None:
            return
        try:
            line = step_line(event, now, actions)
            if len(line) > self._limit // 2:
                raise ValueError(f"a step of {len(line)} bytes is too long for this log")
        except (TypeError, ValueError) as error:
            self.flush()
            self._stop(error)
            return
        try:
            if self._size + self._pending + len(line) > self._limit:
                self._write()
                if not self._rotate:
                    raise OSError(f"it has reached its {self._max_bytes} bytes")
                self._file.close()
                self._begin()
        except OSError as error:
            self._stop(error)
            return
        self._lines.append(line)
        self._pending += len(line)
        self.steps += 1
        if self._pending >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand what is recorded to the operating system."""
        try:
            self._write()
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        """Write the rest and end. A closed writer records nothing."""
        self.flush()
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                self._stop(error)

    def __enter__(self) -> EventLogWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Open the next file; the current one becomes the previous one."""
        if self.path.exists():
            self.path.replace(previous_file(self.path))
        self.path.touch(mode=0o600, exist_ok=False)
        # Unbuffered: a buffer would try again to write what failed, whenever it is closed.
        self._file = self.path.open("ab", buffering=0)
        self._size = 0
        self._lines = [header_line(LogHeader(self.steps, self._settings))]
        self._pending = len(self._lines[0])

    def _write(self) -> None:
        if self._file is None or not self._lines:
            return
        left = memoryview(b"".join(self._lines))
        self._lines = []
        self._size += len(left)
        self._pending = 0
        while left:
            left = left[self._file.write(left) :]

    def _stop(self, error: Exception) -> None:
        file, self._file, self._lines, self._pending = self._file, None, [], 0
        why = _reason(error)
        if file is not None:
            try:
                file.close()
            except OSError as second:
                why += f", and closing it: {_reason(second)}"
        if self.stopped is None:
            self.stopped = (
                f"The event log {str(self.path)!r} stops at step {self.steps}: {why}. "
                "Serving goes on."
            )
            if self._on_stop is not None:
                self._on_stop(self.stopped)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _header_of(settings: Mapping[str, Any]) -> bytes:
    try:
        return header_line(LogHeader(0, settings))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the settings for the head of the event log: {error}.") from None


__all__ = [
    "Difference",
    "EventLog",
    "EventLogWriter",
    "LogHeader",
    "LogStep",
    "Replay",
    "read_log",
    "replay",
]
