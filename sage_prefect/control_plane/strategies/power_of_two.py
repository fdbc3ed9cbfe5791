"""``random`` and ``power_of_two``: oldest request first, engines by chance."""

from __future__ import annotations

from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy

_TRIES = 4


class RandomPolicy(LeastOutstandingPolicy):
    """An engine by chance, among those with room; the least loaded where chance finds none."""

    name = "random"
    draws = 1

    def place(self, request: ScheduledRequest) -> EngineEntry | None:
        members = self.ledger.members(request.info.model)
        found: list[EngineEntry] = []
        for _ in range(_TRIES * self.draws):
            if len(found) == self.draws or not members:
                break
            entry = members[self.rng.randrange(len(members))]
            if entry.room > 0 and entry.name not in request.tried and entry not in found:
                found.append(entry)
        if len(found) < min(self.draws, len(members)):
            return super().place(request) if not found else found[0]
        return min(found, key=self.placement_key) if found else None


class PowerOfTwoPolicy(RandomPolicy):
    """The less loaded of two engines by chance (Mitzenmacher 2001): near the best of all, without
    looking at all."""

    name = "power_of_two"
    draws = 2
