"""The lines of an event log: a header, then one step after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane.event_json import (
    action_of,
    check_version,
    dump,
    event_of,
    load,
    number_of,
    number_to_json,
    to_object,
)
from sage_prefect.control_plane.events import SCHEMA_VERSION, Action, Event


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line of a log's file."""

    first_step: int = 0
    """Steps that came before this file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the recorder says of the manager (policy, seed, limits): plain JSON values."""


@dataclass(frozen=True, slots=True)
class LogStep:
    """One call of :meth:`ControlPlaneManager.handle`."""

    at: float
    event: Event
    actions: tuple[Action, ...]


def previous_file(path: Path) -> Path:
    """Where a log's file goes when the next one begins."""
    return path.with_name(path.name + ".1")


def header_line(header: LogHeader) -> bytes:
    """Raises TypeError or ValueError if the settings are no JSON."""
    return _line("Log", first_step=header.first_step, settings=dict(header.settings))


def step_line(event: Event, at: float, actions: Iterable[Action]) -> bytes:
    """Raises ValueError if a number is too long to be written."""
    return _line(
        "Step",
        at=number_to_json(at),
        event=to_object(event),
        actions=[to_object(action) for action in actions],
    )


def read_header(path: Path, line: bytes) -> LogHeader:
    """Read a file's first line.

    Raises:
        CorruptFileError: it is none, or of another version.
    """
    value = _checked(path, 1, line, "Log", {"first_step", "settings"})
    first, settings = value["first_step"], value["settings"]
    if type(first) is not int or first < 0 or not isinstance(settings, dict):
        raise _damaged(path, 1, "it must be a header of an event log.")
    return LogHeader(first, settings)


def read_step(path: Path, number: int, line: bytes) -> LogStep:
    """Read line ``number`` of a file.

    Raises:
        CorruptFileError: it is damaged; says where.
    """
    value = _checked(path, number, line, "Step", {"at", "event", "actions"})
    try:
        at, event = number_of(value["at"], "Step.at"), event_of(value["event"])
        if not isinstance(value["actions"], list):
            raise CorruptFileError("Step.actions must be an array.")
        return LogStep(at, event, tuple([action_of(action) for action in value["actions"]]))
    except CorruptFileError as error:
        raise _damaged(path, number, str(error)) from None


def _line(kind: str, **fields: Any) -> bytes:
    return dump({"v": SCHEMA_VERSION, "type": kind, **fields}) + b"\n"


def _checked(path: Path, number: int, line: bytes, kind: str, keys: set[str]) -> dict[str, Any]:
    try:
        value = load(line)
        check_version(value.pop("v", None))
    except CorruptFileError as error:
        raise _damaged(path, number, str(error)) from None
    found = value.pop("type", None)
    if found != kind or value.keys() != keys:
        raise _damaged(path, number, f"it must be a {kind} of {', '.join(sorted(keys))}")
    return value


def _damaged(path: Path, number: int, why: str) -> CorruptFileError:
    return CorruptFileError(f"line {number} of the event log {str(path)!r}: {why}")
