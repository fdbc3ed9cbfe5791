"""``least_outstanding``: oldest request first, into the engine with the fewest requests inside."""

from __future__ import annotations

from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.strategies.arrival_order import ArrivalOrderPolicy
from sage_prefect.control_plane.strategies.placement import Key


class LeastOutstandingPolicy(ArrivalOrderPolicy):
    """What nginx calls ``least_conn``, on the gateway's own count; ties take turns."""

    name = "least_outstanding"

    def placement_key(self, entry: EngineEntry) -> Key:
        return (len(entry.running), entry.last_turn)
