"""``round_robin``: oldest request first, engines strictly in turn."""

from __future__ import annotations

from sage_prefect.control_plane.strategies.fifo import FifoPolicy


class RoundRobinPolicy(FifoPolicy):
    """The engine whose last turn is longest ago, among those with room: what ``fifo`` does too,
    under the name that load balancers use."""

    name = "round_robin"
