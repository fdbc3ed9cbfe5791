"""The engines of the hybrid policy: their models learn from what streams show.

An engine serves the pools of its models; of many engines a dispatch looks at a few.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice
from random import Random

from sage_prefect.control_plane.admission import Drain
from sage_prefect.control_plane.engine_load import SHARE, EngineLoad
from sage_prefect.control_plane.engine_model import fleet_profile
from sage_prefect.control_plane.engine_seconds import predicted_s, token_s
from sage_prefect.control_plane.events import (
    Band,
    EngineGauges,
    EngineProfile,
)
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.queues import ModelQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.engine_choice import EngineChoice
from sage_prefect.control_plane.strategies.model_pool import ModelPool
from sage_prefect.control_plane.strategies.placement import Key, PlacementIndex
from sage_prefect.control_plane.strategies.tenant_books import TenantBooks

_UNKNOWN_COST_S = 0.01
JUDGED_TOKENS = 8
"""A mean over fewer tokens says little of the whole answer's."""
_SHOWING_TOKENS = 32
"""A whole answer of fewer tells more of its prompt."""
_SPARED = 0.9
"""A call on a shared accelerator takes about half of it; of a promise so much may be used then."""


class EngineFleet(TenantBooks):
    """Pools by model, loads by engine, and what each engine has taught."""

    def __init__(self, ledger: Ledger, rng: Random, parameters: HybridParameters | None) -> None:
        super().__init__(ledger, rng, parameters)
        self._pools: dict[str, ModelPool] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._index = PrefixIndex()
        self._least = PlacementIndex(ledger, _in_flight)
        self._size = 0
        """Queued requests of all models."""
        self._now = 0.0
        for entry in ledger:
            self.engine_changed(entry)

    def engine_changed(self, entry: EngineEntry) -> None:
        load = self._loads.get(entry.name)
        if load is None or load.entry is not entry:
            load = self._loads[entry.name] = EngineLoad(
                entry, self._parameters.window, self._fleet(entry)
            )
            if len(self._loads) == self._parameters.scan + 1:
                # From now on not all are looked at, and this index is kept.
                self._least = PlacementIndex(self.ledger, _in_flight)
            self._index.set_capacity(entry.name, entry.spec.kv_tokens)
        load.respect(entry.spec)
        if entry.spec.accelerator is not None:
            self._meet(entry)
        if entry.leaving or not load.is_well:
            load.batch_preferred = False
            self._index.forget(entry.name)
            self._index.set_capacity(entry.name, entry.spec.kv_tokens)
        models = () if entry.leaving else entry.spec.models
        for model, pool in self._pools.items():
            if entry.name in pool.loads and model not in models:
                del pool.loads[entry.name]
        for model in models:
            pool = self._pool(model)
            pool.loads[entry.name] = load
            pool.touched = True
        self.load_changed(entry)

    def load_changed(self, entry: EngineEntry) -> None:
        if len(self._loads) > self._parameters.scan:
            self._least.update(entry)
        if entry.leaving and not entry.running:
            self._loads.pop(entry.name, None)
            self._index.forget(entry.name)
            return
        pools = self._pools
        for model in entry.spec.models:
            if model in pools:
                pools[model].touched = True

    def is_crowded(self, entry: EngineEntry, now: float) -> bool:
        load = self._loads.get(entry.name)
        if load is None or not load.latency or not load.model.known:
            return False
        promise = min(load.tightest_tpot(), self._pool(entry.spec.models[0]).choice.promise_s)
        tpot = load.model.tpot_s(load.running, load.context, load.prefill_rate(now))
        return tpot / (1.0 - SHARE) > _SPARED * promise

    # -- what engines show -----------------------------------------------------------------

    def first_token(self, request: ScheduledRequest, now: float) -> bool:
        load = self._loads.get(request.engine or "")
        if load is None:
            return False
        inside = now - request.dispatched_at
        n, context = request.load_at_dispatch
        if load.is_well:
            load.model.saw_ttft(
                inside / load.stretch,
                request.prefill_ahead,
                request.uncached,
                n,
                context,
                load.budget,
            )
            load.stale = True
        load.first_token(request, now)
        request.progress_at = now
        if request.band is not Band.BATCH and request.ttft_slo_s < math.inf:
            load.window.saw_ttft((now - request.arrived) / request.ttft_slo_s)
        return self._size > 0 and self._touch(request)

    def progressed(self, request: ScheduledRequest, chunks: int, now: float) -> bool:
        load = self._loads.get(request.engine or "")
        if load is None or chunks < 1:
            return False
        load.grow(request, chunks)
        # While it is inside, a whole answer is always still to come: nobody knows when it ends, and
        # service is even at any time this way (Jain's index 0.985; 0.977 if made even at its end).
        more = token_s(load.model, request) * chunks
        self._charge(request, more)
        request.cost_s += more
        self._saw_pace(request, load, chunks, now)
        return False

    def refused(self, entry: EngineEntry, now: float) -> None:
        load = self._loads.get(entry.name)
        if load is not None:
            load.window.refused(load.running)

    def reported(self, entry: EngineEntry, gauges: EngineGauges, now: float) -> None:
        load = self._loads.get(entry.name)
        if load is not None and gauges.preemptions is not None:
            load.saw_preemptions(gauges.preemptions)

    def _saw_pace(
        self, request: ScheduledRequest, load: EngineLoad, chunks: int, now: float
    ) -> None:
        took = now - request.progress_at
        request.progress_at = now
        if took <= 0:
            return
        if load.is_well and load.is_clean(now - took):
            if load.neighbours:
                load.share(now)
            load.model.saw_step(took / chunks / load.stretch, load.running, load.context)
            load.stale = True
            load.sampled_at = now
        if request.chunks >= JUDGED_TOKENS:
            self._judge_pace(request, load, request.chunks, now)

    def _saw_answer(
        self, request: ScheduledRequest, load: EngineLoad, tokens: int, now: float
    ) -> None:
        """Whole answers show the pace of an engine without a profile until a stream does: the other
        prompts in their time make it look slower than it is, which is the safe side."""
        model, (n, context) = load.model, request.load_at_dispatch
        if model.reference is not model or load.sampled_at > -math.inf or tokens < _SHOWING_TOKENS:
            return
        prefill = model.a * (request.prefill_ahead + request.uncached)
        pace = (now - request.dispatched_at - prefill) / tokens
        model.saw_step(pace, (n + 1 + load.running) / 2, (context + load.context) / 2)
        load.stale = True

    def _judge_pace(
        self, request: ScheduledRequest, load: EngineLoad, tokens: int, now: float
    ) -> None:
        """Hold a latency request's mean time per token so far against its promise."""
        if request.band is Band.BATCH or request.tpot_slo_s == math.inf:
            return
        if request.first_token_at is not None and tokens > 0:
            # What a neighbour on its accelerator takes is not for its window to give back.
            pace = (now - request.first_token_at) / tokens / load.stretch
            load.window.saw_tpot(pace / request.tpot_slo_s)

    # -- which engines ---------------------------------------------------------------------

    def _meet(self, entry: EngineEntry) -> None:
        """Engines of one accelerator get to know each other."""
        together = [entry, *self.ledger.beside(entry)]
        for one in together:
            load = self._loads.get(one.name)
            if load is not None:
                load.neighbours = tuple(other for other in together if other is not one)
                load.shares = self.ledger.shares

    def _candidates(self, pool: ModelPool, request: ScheduledRequest) -> Collection[EngineLoad]:
        loads = pool.loads
        if len(loads) > self._parameters.scan:
            loads = self._sample(loads, request)
        return loads.values()

    def _sample(
        self, loads: dict[str, EngineLoad], request: ScheduledRequest
    ) -> dict[str, EngineLoad]:
        """Of many engines: the least loaded, two at random, the holders of its prefix."""
        model = request.info.model
        members = self.ledger.members(model)
        choice = self.rng.choice
        names = [choice(members).spec.name, choice(members).spec.name]
        least = self._least.best(model, request.tried)
        if least is not None:
            names.append(least.spec.name)
        chosen = {name: loads[name] for name in names if name in loads}
        prefix = request.info.prefix
        if prefix and self._parameters.prefix:
            for name in self._index.holders(prefix):
                if name in loads:
                    chosen[name] = loads[name]
        return chosen

    def _pool(self, model: str) -> ModelPool:
        pool = self._pools.get(model)
        if pool is None:
            parts = self._parameters
            queue = ModelQueue(
                model, self._accounts, by_deadline=parts.by_deadline, fair=parts.fair
            )
            choice = EngineChoice(parts, self._index, self.rng, self.ledger.lent)
            engines = self.ledger.pool(model)
            drain = Drain(parts.drain_tau, float(max(1, len(engines))), self._now)
            pool = self._pools[model] = ModelPool(queue, choice, drain)
            for name in engines:
                if name in self._loads:
                    pool.loads[name] = self._loads[name]
        return pool

    def _fleet(self, entry: EngineEntry) -> EngineProfile | None:
        """What engines of the same device have learned that serve one of its models."""
        like = (
            load.model
            for model in entry.spec.models
            if model in self._pools
            for load in islice(self._pools[model].loads.values(), self._parameters.scan)
            if load.entry.spec.device == entry.spec.device
        )
        return fleet_profile(like)

    def _cost_s(self, pool: ModelPool, request: ScheduledRequest) -> float:
        for load in pool.loads.values():
            return predicted_s(load.model, request)
        return _UNKNOWN_COST_S

    def _touch(self, request: ScheduledRequest) -> bool:
        pool = self._pools.get(request.info.model)
        if pool is None or not pool.queue.size:
            return False
        pool.touched = True
        return True


def _in_flight(entry: EngineEntry) -> Key:
    return (len(entry.running) / entry.spec.max_concurrency, entry.last_turn)
