"""How far a stream has come, told to the control plane now and then.

Counted are events, which engines send one per token, not reads: of a gateway that was busy for a
moment one read holds several. What comes with the first read is told by ``FirstToken``, what comes
with the end by ``Done``: a report is of the events since the last one, in the time since then.
"""

from __future__ import annotations

from collections.abc import Callable

PROGRESS_INTERVAL_S = 0.25


class StreamProgress:
    """Counts the events of one stream.

    Args:
        tell: called with the number of events since the last call, at most once per
            ``PROGRESS_INTERVAL_S``.
        begun: when its first read came, in seconds of the driver's clock.
    """

    __slots__ = ("_events", "_tell", "_told")

    def __init__(self, tell: Callable[[int], None], begun: float) -> None:
        self._tell = tell
        self._told = begun
        self._events = 0

    def passed(self, events: bytes, now: float) -> None:
        """Complete events after the first read and before the end have come at ``now``."""
        self._events += events.count(b"\n\n") or events.count(b"\r\n\r\n")
        if self._events and now - self._told >= PROGRESS_INTERVAL_S:
            self._tell(self._events)
            self._events, self._told = 0, now
