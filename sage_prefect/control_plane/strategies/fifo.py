"""``fifo``: oldest request first, engines take turns."""

from __future__ import annotations

from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.strategies.arrival_order import ArrivalOrderPolicy
from sage_prefect.control_plane.strategies.placement import Key


class FifoPolicy(ArrivalOrderPolicy):
    """The textbook queue with several servers: of the engines with room, the one whose last turn
    is longest ago takes the next request."""

    name = "fifo"

    def placement_key(self, entry: EngineEntry) -> Key:
        return (entry.last_turn,)
