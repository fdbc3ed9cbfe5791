"""How many engines prefer batch work: those that latency demand leaves over.

Packing batch work on few engines and spreading latency work over the rest carries half more batch
work at equal goodput; one engine too many breaks the promises. So demand is measured by its peak
(the highest recent 10-second mean), changes come one by one, and a breach takes one back at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from sage_prefect.control_plane.engine_load import EngineLoad
from sage_prefect.control_plane.hybrid_parameters import HybridParameters

_SLOT_S, _SLOTS = 10.0, 12


class SoftPartition:
    """The batch-preferred engines of one model."""

    __slots__ = ("_arrivals", "_calm_at", "_changed_at", "_e2e", "_next", "_parameters", "_slot")

    def __init__(self, parameters: HybridParameters) -> None:
        self._parameters = parameters
        self._arrivals: deque[int] = deque([0], maxlen=_SLOTS)
        self._slot = -math.inf
        self._e2e = 0.0
        self._changed_at = -math.inf
        self._calm_at = -math.inf
        self._next = -math.inf

    def arrived(self, now: float) -> None:
        """A latency request arrived."""
        self._roll(now)
        self._arrivals[-1] += 1

    def finished(self, inside_s: float) -> None:
        """A latency request was inside an engine for so long."""
        self._e2e += 0.02 * (inside_s - self._e2e) if self._e2e else inside_s

    def breached(self, now: float) -> None:
        """A promise was broken, or nearly: no growth for a while."""
        self._calm_at = now

    def turn(self, now: float, loads: Sequence[EngineLoad], promise_s: float) -> None:
        """Choose the batch-preferred engines anew, at most one change per call.

        Args:
            loads: all engines of the model that take work.
            promise_s: the latency bands' promised time per token.
        """
        parameters = self._parameters
        if now < self._next:
            return
        self._next = now + parameters.partition_period
        preferred = [load for load in loads if load.batch_preferred]
        target = self._target(now, loads, promise_s)
        if now - self._calm_at < parameters.partition_period and preferred:
            target = min(target, len(preferred) - 1)
        if target < len(preferred):
            given = max(preferred, key=lambda load: load.latency - load.batch)
            given.batch_preferred = False
            self._changed_at = now
        elif target > len(preferred) and now - self._changed_at >= parameters.partition_step:
            rest = [load for load in loads if not load.batch_preferred]
            min(rest, key=lambda load: (load.latency, -load.batch)).batch_preferred = True
            self._changed_at = now

    def _target(self, now: float, loads: Sequence[EngineLoad], promise_s: float) -> int:
        self._roll(now)
        engines = len(loads)
        if engines < 2 or not any(load.batch for load in loads):
            return 0
        if not any(self._arrivals):
            return engines - 1
        carried = sorted(self._carried(load, promise_s) for load in loads)
        slots = list(self._arrivals)
        full = slots[:-1] or slots
        peak = max(full) / _SLOT_S
        demand = self._parameters.partition_margin * peak * self._e2e
        needed = 0
        # The strongest engines are counted last: it must do with any of them.
        while needed < engines and demand > 0:
            demand -= carried[needed]
            needed += 1
        mean = sum(full) / len(full)
        spread = sum((slot - mean) ** 2 for slot in full) / len(full)
        spare = 1 if engines >= 4 and mean > 0 and spread / mean > 4 else 0
        return max(0, engines - max(1, needed) - spare)

    def _carried(self, load: EngineLoad, promise_s: float) -> float:
        """Latency requests that an engine carries at a share of the promise."""
        model, target = load.model, self._parameters.partition_tpot * promise_s
        each = load.context / load.running if load.running else 1000.0
        rate = 0.3  # of the time goes to their prompts
        left = target * (1 - rate) / model.kp - model.c0
        return max(1.0, left / max(1e-9, model.b + model.g * each))

    def _roll(self, now: float) -> None:
        slot = now // _SLOT_S
        if self._slot == -math.inf:
            self._slot = slot
        for _ in range(int(min(_SLOTS, slot - self._slot))):
            self._arrivals.append(0)
        self._slot = max(self._slot, slot)
