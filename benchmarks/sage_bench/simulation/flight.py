"""A request on its way through gateway and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sage_bench.workloads.client_request import ClientRequest

if TYPE_CHECKING:
    from sage_bench.simulation.cluster import Node
    from sage_bench.simulation.embedding_engine import EmbeddingCall
    from sage_bench.simulation.sequence import Sequence
    from sage_bench.workloads.sources import ClosedLoop


class Flight:
    """Mutable; times are the simulation's seconds, -1: not yet."""

    __slots__ = (
        "attempts",
        "dispatched_at",
        "ended",
        "first_at",
        "gateway",
        "node",
        "request",
        "request_id",
        "source",
        "work",
    )

    def __init__(
        self, request_id: str, request: ClientRequest, gateway: int, source: ClosedLoop | None
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.gateway = gateway
        self.source = source
        self.node: Node | None = None
        self.work: Sequence | EmbeddingCall | None = None
        self.attempts = 0
        self.dispatched_at = -1.0
        self.first_at = -1.0
        self.ended = False
