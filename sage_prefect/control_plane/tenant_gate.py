"""How many embedding and rerank calls of one tenant are before an executor at once.

An executor may send whatever it holds, so a tenant's ``max_running`` bounds what it is given.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from sage_prefect.control_plane.scheduled_request import ScheduledRequest


class Entrant(Protocol):
    """What asks to be let in."""

    request: ScheduledRequest
    inside: bool
    """It has been let in."""


E = TypeVar("E", bound=Entrant)


class TenantGate(Generic[E]):
    """Lets in so many of each tenant; the others wait, the most urgent first.

    Args:
        limit_of: a tenant's limit; None: it has none.
    """

    __slots__ = ("_came", "_inside", "_limit_of", "_outside")

    def __init__(self, limit_of: Callable[[str], int | None]) -> None:
        self._limit_of = limit_of
        self._inside: dict[str, int] = {}
        # One that comes again may still have an item here: items never compare equal.
        self._came = 0
        self._outside: dict[str, list[tuple[int, int, int, E]]] = {}

    def come(self, one: E) -> bool:
        """Whether it is let in at once; else it waits for :meth:`leave` or :meth:`reopen`."""
        tenant = one.request.info.tenant
        if self._has_room(tenant):
            self._let_in(one)
            return True
        self._came += 1
        place = (int(one.request.band), one.request.seq, self._came, one)
        heapq.heappush(self._outside.setdefault(tenant, []), place)
        return False

    def leave(self, one: E, is_here: Callable[[E], bool]) -> E | None:
        """One has gone from inside or outside; returns who is let in by that.

        Args:
            is_here: whether one that waited outside still does.
        """
        tenant = one.request.info.tenant
        if not one.inside:
            return self._next(tenant, is_here)
        one.inside = False
        left = self._inside[tenant] - 1
        if left:
            self._inside[tenant] = left
        else:
            del self._inside[tenant]
        return self._next(tenant, is_here)

    def reopen(self, is_here: Callable[[E], bool]) -> list[E]:
        """Limits have changed: who is let in now."""
        entered = []
        for tenant in list(self._outside):
            while (one := self._next(tenant, is_here)) is not None:
                entered.append(one)
        return entered

    def _has_room(self, tenant: str) -> bool:
        limit = self._limit_of(tenant)
        return limit is None or self._inside.get(tenant, 0) < limit

    def _let_in(self, one: E) -> None:
        tenant = one.request.info.tenant
        self._inside[tenant] = self._inside.get(tenant, 0) + 1
        one.inside = True

    def _next(self, tenant: str, is_here: Callable[[E], bool]) -> E | None:
        outside = self._outside.get(tenant)
        while outside:
            one = outside[0][3]
            if is_here(one) and not self._has_room(tenant):
                return None
            heapq.heappop(outside)
            if is_here(one):
                self._let_in(one)
                return one
        self._outside.pop(tenant, None)
        return None
