"""Recording what the control plane is told and decides, for :mod:`sage_prefect.platform.event_log`.

Off unless ``sage_settings.recording.file`` or ``--record`` names a file. It never harms serving: a
full disk or a full log ends the recording with one logged error, and a metric tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sage_gateway.config_section import Section
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Action, Event
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.platform.event_log import DEFAULT_MAX_BYTES, LEAST_MAX_BYTES, EventLogWriter
from sage_prefect.platform.recorded_manager import settings_of

log = logging.getLogger(__name__)

WhenFull = Literal["stop", "rotate"]
_WHEN_FULL: tuple[WhenFull, ...] = ("stop", "rotate")


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """Where a gateway's log of events goes and how large it may become."""

    file: Path | None = None
    """None: nothing is recorded."""
    max_bytes: int = DEFAULT_MAX_BYTES
    when_full: WhenFull = "stop"
    """``stop`` keeps what can be replayed; ``rotate`` keeps the latest, to be read only."""
    flush_s: float = 1.0
    """What is lost at most when the process is killed."""


def recording_config(sage: Section) -> RecordingConfig:
    """Read ``sage_settings.recording``.

    Raises:
        SettingsError: names the key, its value and what was expected.
    """
    section = sage.section("recording")
    default = RecordingConfig()
    file = section.text("file")
    wish = section.choice("when_full", _WHEN_FULL, default.when_full)
    config = RecordingConfig(
        Path(file).expanduser() if file is not None else None,
        section.integer("max_bytes", default.max_bytes, least=LEAST_MAX_BYTES),
        next(known for known in _WHEN_FULL if known == wish),
        section.seconds("flush_s", default.flush_s),
    )
    section.refuse_unread()
    return config


class Recorder:
    """Records a manager's steps from its first.

    Args:
        file: of the log.
        config: bounds.
        manager: has handled nothing yet.
        loop: flushes come from its timers.

    Raises:
        SettingsError: the file cannot be written.
    """

    def __init__(
        self,
        file: Path,
        config: RecordingConfig,
        manager: ControlPlaneManager,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._loop = loop
        self._flush_s = config.flush_s
        self._timer: asyncio.TimerHandle | None = None
        self._writer = EventLogWriter(
            file,
            settings=settings_of(manager),
            max_bytes=config.max_bytes,
            rotate=config.when_full == "rotate",
            on_stop=log.error,
        )
        # A disk that is full already is found now, not after the first minutes.
        self._writer.flush()
        if self._writer.stopped is not None:
            raise SettingsError(
                f"the event log {str(file)!r} cannot be written.",
                hint="Make room, name another file, or do not record.",
            )
        log.info("recording events", extra={"fields": {"file": str(file)}})

    @property
    def active(self) -> bool:
        """Whether steps are still recorded."""
        return self._writer.stopped is None

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return self._writer.steps

    def record(self, event: Event, now: float, actions: Iterable[Action]) -> None:
        """Take a step down; raises nothing."""
        self._writer.record(event, now, actions)
        if self._timer is None and self.active:
            self._timer = self._loop.call_later(self._flush_s, self._flush)

    def close(self) -> None:
        """Write the rest and end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writer.close()

    def _flush(self) -> None:
        self._timer = None
        self._writer.flush()
