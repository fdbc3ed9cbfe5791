"""LiteLLM's cooldown: an engine that fails too often within a minute gets nothing for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
"""LiteLLM counts ``allowed_fails`` per minute."""


@dataclass(frozen=True, slots=True)
class CooldownConfig:
    """When an engine cools down, and for how long."""

    allowed_fails: int = 3
    """More failed attempts than this within a minute, whatever their cause."""
    cooldown_s: float = 5.0


class CooldownCounter:
    """Counts failed attempts by engine.

    Args:
        config: None: no engine ever cools down.
        is_alone: whether an engine is the only one that serves some model, so that its rest would
            leave the model's requests with nobody.
    """

    def __init__(self, config: CooldownConfig | None, is_alone: Callable[[str], bool]) -> None:
        self.config = config
        self._is_alone = is_alone
        self._failures: dict[str, deque[float]] = {}

    def failed(self, engine: str, now: float) -> float | None:
        """Note a failed attempt at time ``now`` (seconds); for how long the engine is to rest."""
        if self.config is None:
            return None
        failures = self._failures.setdefault(engine, deque())
        failures.append(now)
        while failures[0] <= now - WINDOW_S:
            failures.popleft()
        if len(failures) <= self.config.allowed_fails:
            return None
        if self._is_alone(engine):
            failures.popleft()  # nothing more needs to be remembered than says "too often"
            return None
        del self._failures[engine]
        return self.config.cooldown_s

    def forget(self, engine: str) -> None:
        """The engine was removed, or registered anew."""
        self._failures.pop(engine, None)


def no_cooldown(engine: str) -> None:
    """Told of failures where no engine ever cools down."""
