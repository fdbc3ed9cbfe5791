"""How many engines prefer batch work: those that latency demand leaves over.

Packing batch work on few engines and spreading latency work over the rest carries half more batch
work at equal goodput; one engine too many breaks the promises. So demand is measured by its peak
(the highest recent 10-second mean), changes come one by one, and an engine that demand needs again
is taken back at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from sage_prefect.control_plane.engine_load import EngineLoad
from sage_prefect.control_plane.hybrid_parameters import HybridParameters

_SLOT_S, _SLOTS = 10.0, 12
# An engine is taken back a little later than it is given: a change costs what is inside it.
_SLACK = 1.15


class SoftPartition:
    """The batch-preferred engines of one model."""

    __slots__ = (
        "_arrivals", "_began", "_changed_at", "_next", "_output", "_parameters", "_prompt", "_slot",
    )  # fmt: skip

    def __init__(self, parameters: HybridParameters) -> None:
        self._parameters = parameters
        self._arrivals: deque[int] = deque([0], maxlen=_SLOTS)
        self._began = -math.inf
        self._slot = 0
        self._prompt = 0.0
        self._output = 0.0
        self._changed_at = -math.inf
        self._next = -math.inf

    def arrived(self, now: float, prompt: float) -> None:
        """A latency request arrived, with so many prompt tokens."""
        self._roll(now)
        self._arrivals[-1] += 1
        self._prompt += 0.02 * (prompt - self._prompt) if self._prompt else prompt

    def finished(self, output: float) -> None:
        """A latency request was answered, with so many tokens."""
        self._output += 0.02 * (output - self._output) if self._output else output

    def is_due(self, now: float) -> bool:
        """Whether :meth:`turn` would look."""
        return now >= self._next

    def turn(
        self, now: float, loads: Sequence[EngineLoad], promise_s: float, waiting: int = 0
    ) -> None:
        """Choose the batch-preferred engines anew, at most one change per call.

        Args:
            loads: all engines of the model that take work.
            promise_s: the latency bands' promised time per token.
            waiting: batch requests in the queue.
        """
        parameters = self._parameters
        if now < self._next:
            return
        self._next = now + parameters.partition_period
        preferred = [load for load in loads if load.batch_preferred]
        limit = parameters.partition_tpot * promise_s
        filled = _filled(loads, waiting)
        spared = self._target(now, loads, _SLACK * limit)
        if min(spared, math.ceil(_SLACK * filled)) < len(preferred):
            given = max(preferred, key=lambda load: load.latency - load.batch)
            given.batch_preferred = False
            self._changed_at = now
        elif now - self._changed_at >= parameters.partition_step and min(
            self._target(now, loads, limit), math.ceil(filled)
        ) > len(preferred):
            rest = [load for load in loads if not load.batch_preferred]
            min(rest, key=lambda load: (load.latency, -load.batch)).batch_preferred = True
            self._changed_at = now

    def _target(self, now: float, loads: Sequence[EngineLoad], limit: float) -> int:
        """Engines that can be spared while the others keep time per token under ``limit``."""
        self._roll(now)
        engines = len(loads)
        if engines < 2 or not any(load.batch for load in loads):
            return 0
        if not all(load.model.known for load in loads):
            return 0  # of what is not known nothing can be spared
        if not any(self._arrivals):
            return engines - 1
        complete = list(self._arrivals)[:-1] or list(self._arrivals)
        rate = self._parameters.partition_margin * max(complete) / _SLOT_S
        for kept in range(1, engines):
            if self._tpot_s(loads, rate / kept) <= limit:
                return engines - kept
        return 0

    def _tpot_s(self, loads: Sequence[EngineLoad], rate: float) -> float:
        """Time per token of an average engine that gets ``rate`` latency requests per second.

        ``n = rate * output * T`` of them are inside at once, so that ``T (1 - a*prompt*rate) =
        c0 + (b + g*context) * n`` can be solved for T.
        """
        count = len(loads)
        c0 = sum(load.model.c0 for load in loads) / count
        a = sum(load.model.a for load in loads) / count
        context = self._prompt + self._output / 2
        each = sum(load.model.b + load.model.g * context for load in loads)
        left = 1.0 - a * self._prompt * rate - each / count * rate * self._output
        return c0 / left if left > 0 else math.inf

    def _roll(self, now: float) -> None:
        if self._began == -math.inf:
            self._began = now  # not the clock's own tens of seconds: equal arrivals, equal slots
        slot = int((now - self._began) // _SLOT_S)
        if slot == self._slot:
            return
        for _ in range(min(_SLOTS, slot - self._slot)):
            self._arrivals.append(0)
        self._slot = max(self._slot, slot)


def _filled(loads: Sequence[EngineLoad], waiting: int) -> float:
    """Engines that batch work fills up to its windows: more are no use to it."""
    windows = sum(load.window.batch for load in loads)
    work = waiting + sum(load.batch for load in loads)
    return work * len(loads) / windows if windows else 0.0
