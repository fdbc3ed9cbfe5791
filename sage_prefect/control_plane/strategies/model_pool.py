"""One model under the hybrid policy: its queue, its engines, its partition."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sage_prefect.control_plane.admission import Drain
from sage_prefect.control_plane.engine_load import EngineLoad
from sage_prefect.control_plane.events import Band, BandSpec, EngineState
from sage_prefect.control_plane.queues import BandQueue, ModelQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.soft_partition import SoftPartition
from sage_prefect.control_plane.strategies.engine_choice import EngineChoice

_MAX_CREDIT_S = 2.0
_SERVING = (EngineState.READY, EngineState.WARMING)
_ADAPT_S = 0.25
"""Windows and partition are looked at this often; they change every two and five seconds."""


class ModelPool:
    """What the policy keeps of one model."""

    __slots__ = (
        "_credit", "adapt_at", "choice", "drain", "loads", "newest", "partition", "queue",
        "touched",
    )  # fmt: skip

    def __init__(self, queue: ModelQueue, choice: EngineChoice, drain: Drain) -> None:
        self.queue = queue
        self.choice = choice
        self.drain = drain
        self.partition = SoftPartition(choice.parameters)
        self.loads: dict[str, EngineLoad] = {}
        self.newest: ScheduledRequest | None = None
        """The request that joined the queue last."""
        self._credit = [0.0] * len(Band)
        self.adapt_at = -math.inf
        """When windows and partition are looked at again: that walks over all engines."""
        self.touched = True
        """Something may be able to go since the last look."""

    def newest_of(self, tenant: str, queue: BandQueue) -> ScheduledRequest | None:
        """The request that joined last, if it is the tenant's and waits in ``queue``."""
        newest = self.newest
        if newest is None or newest.waits_in is not queue or newest.info.tenant != tenant:
            return None
        return newest

    def order(self) -> list[Band]:
        """Bands with requests: first a lower one whose guaranteed share is due, then by urgency."""
        bands = self.queue.bands
        order = [band for band in Band if bands[band].size]
        if len(order) > 1:
            for band in reversed(order[1:]):
                head = bands[band].head()
                if head is not None and 0.0 < head.cost_s <= self._credit[band]:
                    order.remove(band)
                    order.insert(0, band)
                    break
        return order

    def served(self, request: ScheduledRequest, specs: Mapping[Band, BandSpec]) -> None:
        """A request goes: lower bands that wait earn their guaranteed share of its time."""
        bands = self.queue.bands
        for band in (Band.STANDARD, Band.BATCH):
            if band is request.band:
                self._credit[band] = max(0.0, self._credit[band] - request.cost_s)
            elif band > request.band and bands[band].size:
                credit = self._credit[band] + specs[band].min_share * request.cost_s
                if credit > _MAX_CREDIT_S:
                    # Bounded, but a request that costs more can be saved up for.
                    head = bands[band].head()
                    most = _MAX_CREDIT_S if head is None else max(_MAX_CREDIT_S, head.cost_s)
                    credit = min(most, credit)
                self._credit[band] = credit

    def adapt(self, now: float) -> None:
        """Let windows and partition follow what was measured, a few times a second."""
        if now < self.adapt_at:
            return
        self.adapt_at = now + _ADAPT_S
        loads = [load for load in self.loads.values() if load.entry.state in _SERVING]
        for load in loads:
            if load.assumed:
                load.assume(now)
            if now >= load.window.next_at:
                load.window.turn(now, load.batch, load.running)
        parameters = self.choice.parameters
        if parameters.partition and parameters.gate and loads and self.partition.is_due(now):
            promise = min(self.choice.tpot_promise_s(load) for load in loads)
            waiting = self.queue.bands[Band.BATCH].size
            self.partition.turn(now, loads, promise, waiting)
