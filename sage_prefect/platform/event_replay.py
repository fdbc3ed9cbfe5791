"""Replaying an event log: does a fresh manager decide as the recorded one did?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane.event_json import to_json
from sage_prefect.control_plane.events import Action, Event
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.platform.event_log_reader import EventLog


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay decided otherwise than the recorded manager."""

    step: int
    at: float
    event: Event
    recorded: tuple[Action, ...]
    replayed: tuple[Action, ...]

    def __str__(self) -> str:
        return (
            f"step {self.step} at {self.at} s, {_shown(self.event)}: "
            f"recorded [{', '.join(map(_shown, self.recorded))}], "
            f"replayed [{', '.join(map(_shown, self.replayed))}]"
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay."""

    steps: int
    """Steps that agree."""
    difference: Difference | None
    """The first step that does not; nothing after it was compared."""


def replay(log: EventLog, make_manager: Callable[[], ControlPlaneManager]) -> Replay:
    """Feed the recorded events to a fresh manager and compare its actions with the recorded ones.

    Args:
        log: from its first step.
        make_manager: makes a manager as it was when the recording began: ``log.header.settings``
            says what its recorder told of it. What happened before (engines, bands, tenants) must
            be events of the log.

    Raises:
        CorruptFileError: the log is damaged, or its beginning was rotated away.
    """
    if log.header.first_step:
        raise CorruptFileError(
            f"the event log {str(log.files[-1])!r} begins at step {log.header.first_step}; "
            "decisions can only be replayed from the first.",
            hint="Record with a larger max_bytes.",
        )
    manager = make_manager()
    steps = 0
    for step in log:
        replayed = tuple(manager.handle(step.event, step.at))
        if replayed != step.actions:
            return Replay(steps, Difference(steps, step.at, step.event, step.actions, replayed))
        steps += 1
    return Replay(steps, None)


def _shown(message: Event | Action) -> str:
    return to_json(message).decode("ascii")
