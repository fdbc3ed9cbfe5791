"""``random`` and ``power_of_two``: oldest request first, engines by chance."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from random import Random

from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy

_TRIES = 4


class RandomPolicy(LeastOutstandingPolicy):
    """An engine by chance, among those with room; the least loaded where chance finds none.

    Engines are drawn as often as their weights say.
    """

    name = "random"
    draws = 1
    weighs = True

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        super().__init__(ledger, rng)
        self._weights: dict[str, tuple[tuple[EngineEntry, ...], list[float]]] = {}
        """Model -> its engines and their weights summed up; no sums where all are alike."""

    def place(self, request: ScheduledRequest) -> EngineEntry | None:
        members = self.ledger.members(request.info.model)
        found: list[EngineEntry] = []
        for _ in range(_TRIES * self.draws):
            if len(found) == self.draws or not members:
                break
            entry = self._draw(request.info.model, members)
            if entry.room > 0 and entry.name not in request.tried and entry not in found:
                found.append(entry)
        if len(found) < min(self.draws, len(members)):
            return super().place(request) if not found else found[0]
        return min(found, key=self.placement_key) if found else None

    def _draw(self, model: str, members: tuple[EngineEntry, ...]) -> EngineEntry:
        known = self._weights.get(model)
        if known is None or known[0] is not members:
            weights = [entry.spec.weight for entry in members]
            differ = self.weighs and len(set(weights)) > 1
            known = self._weights[model] = (members, list(accumulate(weights)) if differ else [])
        sums = known[1]
        if not sums:
            return members[self.rng.randrange(len(members))]
        drawn = bisect(sums, self.rng.random() * sums[-1])
        return members[min(drawn, len(members) - 1)]


class PowerOfTwoPolicy(RandomPolicy):
    """The less loaded of two engines by chance (Mitzenmacher 2001): near the best of all, without
    looking at all."""

    name = "power_of_two"
    draws = 2
    weighs = False
