"""``prefix_aware``: to the engine with the longest cached prefix, while loads stay even."""

from __future__ import annotations

from random import Random

from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy

_ABSOLUTE, _RELATIVE = 32, 1.1


class PrefixAwarePolicy(LeastOutstandingPolicy):
    """The longest known prefix wins, unless its engine is more than 32 requests and a tenth ahead
    of the least loaded one (the thresholds of SGLang's router); without a prefix the least loaded.
    """

    name = "prefix_aware"

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        super().__init__(ledger, rng)
        self._index = PrefixIndex()
        for entry in ledger:
            self._index.set_capacity(entry.name, entry.spec.kv_tokens)

    def engine_changed(self, entry: EngineEntry) -> None:
        super().engine_changed(entry)
        if entry.leaving:
            self._index.forget(entry.name)
        else:
            self._index.set_capacity(entry.name, entry.spec.kv_tokens)

    def place(self, request: ScheduledRequest) -> EngineEntry | None:
        prefix = request.info.prefix
        least = super().place(request)
        if least is None:
            return None
        chosen, known = least, self._index.cached_tokens(least.name, prefix)
        pool = self.ledger.pool(request.info.model)
        for name in self._index.holders(prefix) if prefix else ():
            entry = pool.get(name)
            if entry is None or entry.room < 1 or name in request.tried:
                continue
            ahead = entry.in_flight - least.in_flight
            uneven = ahead > _ABSOLUTE and entry.in_flight > _RELATIVE * least.in_flight
            cached = self._index.cached_tokens(name, prefix)
            if cached > known and not uneven:
                chosen, known = entry, cached
        if prefix:
            self._index.record(chosen.name, prefix)
        return chosen
