"""Which accelerators LLM requests leave to embedding calls, where engines of both kinds share them.

Split by time, an accelerator gives each side half its speed while both are busy, and LLM requests
pay it twice: every iteration has a fixed cost. So whole accelerators are lent, as many as embedding
calls need at full speed, and only the rest of a fraction is shared: there, calls that may wait come
at the pace of that fraction, as a backlog would take half of it for as long as it lasts. The demand
is what is asked for, in engine-seconds per second, less what engines elsewhere (CPUs) can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sage_prefect.control_plane.embedding_demand import EmbeddingDemand
from sage_prefect.control_plane.events import EngineState
from sage_prefect.control_plane.ledger import EngineEntry, Ledger

PERIOD_S = 0.5
ROUND_UP = 0.2
"""A fraction of an accelerator's time above ``1 - ROUND_UP`` lends it whole: what LLM requests
would have of it is hardly more than the fixed cost of their iterations."""
_KEEP = 0.15
PACE = 1.0
"""Calls come at the pace of their demand, and a little faster ..."""
CATCH_UP_S, MOST_CATCH_UP = 5.0, 0.05
"""... so that what waits is done in so many seconds, taking so much of the accelerator at most."""
_LEAST = 0.01
_SERVING = (EngineState.READY, EngineState.WARMING)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one model's embedding engines are.

    Args:
        token_s: seconds per token of the fastest one on an accelerator, calls' fixed part included.
        elsewhere: tokens per second of all that are on none.
        waiting: tokens that wait for a call.
    """

    token_s: float
    elsewhere: float
    waiting: float = 0.0


class AcceleratorSplit:
    """Demand of embedding calls, and the accelerators lent to them.

    Args:
        ledger: ``lent``, ``closed`` and ``shares`` there are kept.
    """

    __slots__ = ("_demand", "_free_at", "_ledger", "_next")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._demand: dict[str, EmbeddingDemand] = {}
        self._free_at: dict[str, float] = {}
        """When the calls that were sent there have used up their share."""
        self._next = -math.inf

    def asked(self, model: str, tokens: float, now: float) -> None:
        """A call of ``tokens`` has come."""
        demand = self._demand.get(model)
        if demand is None:
            demand = self._demand[model] = EmbeddingDemand()
        demand.asked(tokens, now)

    def models(self) -> tuple[str, ...]:
        """Models with calls lately, and perhaps long ago."""
        return tuple(self._demand)

    def is_due(self, now: float) -> bool:
        """Whether :meth:`turn` has something to do now."""
        return now >= self._next and bool(self._demand)

    def opens_at(self, accelerator: str) -> float:
        """When calls that may wait may go beside LLM requests there."""
        return self._free_at.get(accelerator, -math.inf)

    def sent(self, accelerator: str, seconds: float, now: float) -> None:
        """A call that takes so long on an accelerator of its own goes there."""
        share = self._ledger.shares.get(accelerator)
        if share is not None:
            self._free_at[accelerator] = max(now, self.opens_at(accelerator)) + seconds / share

    def turn(self, now: float, speeds: dict[str, Speed]) -> list[EngineEntry]:
        """Lend accelerators anew.

        Args:
            speeds: of the engines of each model of :meth:`models`, as far as there are any.

        Returns:
            LLM engines on accelerators that were lent or given back.
        """
        self._next = now + PERIOD_S
        sites = self._sites()
        load, waiting_s = 0.0, 0.0
        for model in self.models():
            rate, speed = self._demand[model].rate(now), speeds.get(model)
            if rate < 1e-3:
                del self._demand[model]
            elif speed is not None:
                load += max(0.0, rate - speed.elsewhere) * speed.token_s
                waiting_s += speed.waiting * speed.token_s
        lent = self._ledger.lent
        count = math.floor(load + ROUND_UP)
        if count < len(lent):
            # Given back a little later than lent, and not before what waits is done: a change costs
            # what is inside.
            count = min(len(lent), math.floor(load + waiting_s / CATCH_UP_S + ROUND_UP + _KEEP))
        count = max(0, min(count, len(sites) - 1))
        order = sorted(sites, key=lambda name: (name not in lent, _inside(sites[name]), name))
        chosen = set(order[:count])
        # What is left of a fraction goes beside the LLM requests of one: the others have peace.
        self._ledger.closed = set(order[count + 1 :]) if load > 0.0 else set()
        fraction = PACE * max(0.0, load - count)
        catch_up = min(MOST_CATCH_UP, waiting_s / CATCH_UP_S)
        shares = self._ledger.shares
        shares.clear()  # in place: loads hold it
        for name in order[count : count + 1]:
            shares[name] = min(1.0, fraction + catch_up + _LEAST)
        self._free_at = {name: at for name, at in self._free_at.items() if name in shares}
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


def _inside(entries: Iterable[EngineEntry]) -> int:
    return sum(len(entry.running) for entry in entries)
