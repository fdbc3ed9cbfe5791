"""Requests and batches on their way through gateway and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sage_bench.workloads.client_request import ClientRequest

if TYPE_CHECKING:
    from sage_bench.simulation.cluster import Node
    from sage_bench.simulation.embedding_engine import EmbeddingCall
    from sage_bench.simulation.sequence import Sequence
    from sage_bench.workloads.sources import ClosedLoop

NEVER = -1.0
"""A time that has not come."""


class Flight:
    """A request; times are the simulation's seconds.

    ``turn`` rises with every dispatch and abort: what belongs to an earlier turn is not heard.
    """

    __slots__ = (
        "attempts",
        "dispatched_at",
        "ended",
        "first_at",
        "gateway",
        "inputs_left",
        "key",
        "node",
        "request",
        "source",
        "told_tokens",
        "turn",
        "work",
    )

    def __init__(
        self, key: str, request: ClientRequest, gateway: int, source: ClosedLoop | None
    ) -> None:
        self.key = key
        self.request = request
        self.gateway = gateway
        self.source = source
        self.node: Node | None = None
        self.work: Sequence | EmbeddingCall | None = None
        self.turn = 0
        self.attempts = 0
        self.dispatched_at = NEVER
        self.first_at = NEVER
        self.told_tokens = 0
        self.inputs_left = max(1, len(request.inputs))
        self.ended = False


class Batch:
    """An embedding call that a gateway made of inputs of several requests.

    ``answers`` are the flights whose inputs it answers, one entry per input and copy.
    """

    __slots__ = ("answers", "batch_id", "gateway", "key", "lengths", "node", "turn", "work")

    def __init__(
        self,
        batch_id: int,
        gateway: int,
        node: Node,
        lengths: tuple[int, ...],
        answers: list[Flight],
    ) -> None:
        self.key = f"batch {gateway}/{batch_id}"
        self.batch_id = batch_id
        self.gateway = gateway
        self.node = node
        self.lengths = lengths
        self.answers = answers
        self.turn = 0
        self.work: EmbeddingCall | None = None


Job: TypeAlias = Flight | Batch
"""What an engine works on."""
