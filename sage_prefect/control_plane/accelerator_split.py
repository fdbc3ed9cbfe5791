"""Which accelerators LLM requests leave to embedding calls, where engines of both kinds share them.

Split by time, an accelerator gives each side half its speed while both are busy, and LLM requests
pay it twice: every iteration has a fixed cost. So whole accelerators are lent, as many as embedding
calls need at full speed, and only the rest of a fraction is shared. The demand is what has been
asked for lately, in engine-seconds per second, less what engines elsewhere (CPUs) can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sage_prefect.control_plane.events import EngineState
from sage_prefect.control_plane.ledger import EngineEntry, Ledger

TAU_S = 10.0
"""Time constant of the demand."""
PERIOD_S = 0.5
ROUND_UP = 0.2
"""A fraction of an accelerator's time above ``1 - ROUND_UP`` lends it whole."""
_KEEP = 0.15
_SERVING = (EngineState.READY, EngineState.WARMING)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one model's embedding engines are.

    Args:
        token_s: seconds per token of the fastest one on an accelerator, calls' fixed part included.
        elsewhere: tokens per second of all that are on none.
    """

    token_s: float
    elsewhere: float


class AcceleratorSplit:
    """Demand of embedding calls, and the accelerators lent to them.

    Args:
        ledger: ``lent`` there is kept.
    """

    __slots__ = ("_demand", "_ledger", "_next")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._demand: dict[str, tuple[float, float]] = {}  # model: tokens/s, at
        self._next = -math.inf

    def asked(self, model: str, tokens: float, now: float) -> None:
        """A call of ``tokens`` has come."""
        self._demand[model] = (self._rate(model, now) + tokens / TAU_S, now)

    def models(self) -> tuple[str, ...]:
        """Models with calls lately, and perhaps long ago."""
        return tuple(self._demand)

    def is_due(self, now: float) -> bool:
        """Whether :meth:`turn` has something to do now."""
        return now >= self._next and bool(self._demand)

    def turn(self, now: float, speeds: dict[str, Speed]) -> list[EngineEntry]:
        """Lend accelerators anew.

        Args:
            speeds: of the engines of each model of :meth:`models`, as far as there are any.

        Returns:
            LLM engines on accelerators that were lent or given back.
        """
        self._next = now + PERIOD_S
        sites = self._sites()
        load = 0.0
        for model in self.models():
            rate, speed = self._rate(model, now), speeds.get(model)
            if rate < 1e-3:
                del self._demand[model]
            elif speed is not None:
                load += max(0.0, rate - speed.elsewhere) * speed.token_s
        lent = self._ledger.lent
        count = math.floor(load + ROUND_UP)
        if count < len(lent):
            # Given back a little later than lent: a change costs what is inside.
            count = min(len(lent), math.floor(load + ROUND_UP + _KEEP))
        count = max(0, min(count, len(sites) - 1))
        order = sorted(sites, key=lambda name: (name not in lent, _inside(sites[name]), name))
        chosen = set(order[:count])
        # What is left of a fraction goes beside the LLM requests of one: the others have peace.
        self._ledger.closed = set(order[count + 1 :]) if load > 0.0 else set()
        changed = chosen ^ lent
        lent ^= changed  # in place: policies hold it
        return [entry for name in sorted(changed) for entry in sites.get(name, ())]

    # -- inside ---------------------------------------------------------------------------

    def _sites(self) -> dict[str, list[EngineEntry]]:
        """Accelerators that serve embedding calls and something else: the engines of the latter."""
        sites: dict[str, list[EngineEntry]] = {}
        for name, entries in self._ledger.accelerators():
            mine, others = False, []
            for entry in entries:
                if entry.leaving or entry.state not in _SERVING:
                    continue
                if any(model in self._demand for model in entry.spec.models):
                    mine = True
                else:
                    others.append(entry)
            if mine and others:
                sites[name] = others
        return sites

    def _rate(self, model: str, now: float) -> float:
        rate, at = self._demand.get(model, (0.0, now))
        return rate * math.exp((at - now) / TAU_S) if rate else 0.0


def _inside(entries: Iterable[EngineEntry]) -> int:
    return sum(len(entry.running) for entry in entries)
