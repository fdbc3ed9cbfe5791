"""A request while it is in the lane of the embedding calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sage_prefect.control_plane.executors.embedding_executor import EmbeddingExecutor
from sage_prefect.control_plane.scheduled_request import ScheduledRequest


@dataclass(slots=True, eq=False)
class LaneMember:
    """A request of the lane."""

    request: ScheduledRequest
    executor: EmbeddingExecutor
    cost_s: float
    """Counted for its tenant until its first batch is charged."""
    batches: set[int] = field(default_factory=set)
    """Batches inside engines that hold inputs of it."""
    begun: bool = False
    """Some input of it has been answered."""
    since: float = 0.0
    """When it came into its band."""
    ages_at: float = math.inf
    inside: bool = False
    """Its executor has it; else its tenant is at its limit."""
