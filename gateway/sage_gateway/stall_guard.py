"""A client that takes nothing of its answer holds an engine's slot: it is cut off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sage_gateway.scheduler import clock

log = logging.getLogger(__name__)


class StallGuard:
    """Watches the sending of one answer; one timer, moved lazily.

    Args:
        limit_s: how long one piece may take to leave.
        cut: drops the client's connection.
    """

    __slots__ = ("_cut", "_limit_s", "_loop", "_since", "_timer")

    def __init__(self, limit_s: float, cut: Callable[[], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._cut = cut
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(limit_s, self._check)

    def sending(self) -> None:
        """A piece starts to leave."""
        self._since = clock()

    def sent(self) -> None:
        """It has left."""
        self._since = 0.0

    def stop(self) -> None:
        """The answer has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        waited = clock() - self._since if self._since else 0.0
        if waited >= self._limit_s:
            self._timer = None
            log.warning("client takes nothing of its answer: cut off")
            if self._cut is not None:
                self._cut()
            return
        self._timer = self._loop.call_later(self._limit_s - waited + 0.001, self._check)
