"""Which models a key may use."""

from __future__ import annotations

from collections.abc import Iterable


class ModelAccess:
    """Names and patterns.

    Args:
        models: ``*`` in one stands for any text; none at all: every model.
        within: what is not allowed there is not allowed here either.
    """

    __slots__ = ("_names", "_patterns", "_within")

    def __init__(self, models: Iterable[str] = (), *, within: ModelAccess | None = None) -> None:
        listed = list(models)
        self._names = frozenset(name for name in listed if "*" not in name)
        self._patterns = tuple(name.partition("*")[::2] for name in listed if "*" in name)
        self._within = within if within is not None and within.is_limited else None

    @property
    def is_limited(self) -> bool:
        """Whether there is a model that may not be used."""
        return self._within is not None or (
            bool(self._names or self._patterns) and ("", "") not in self._patterns
        )

    def allows(self, name: str) -> bool:
        """Whether a model of this name may be used."""
        if self._within is not None and not self._within.allows(name):
            return False
        if not self._names and not self._patterns:
            return True
        return name in self._names or any(
            len(name) >= len(before) + len(after)
            and name.startswith(before)
            and name.endswith(after)
            for before, after in self._patterns
        )

    def listed(self) -> list[str]:
        """What is allowed, for messages; of a key that says nothing itself, its tenant's."""
        own = [*self._names, *(f"{before}*{after}" for before, after in self._patterns)]
        return sorted(own) if own or self._within is None else self._within.listed()
