"""``hybrid``: late binding, batch work beside latency work under its promises, fair to tenants.

A request waits at the gateway and is bound to an engine as late as possible, but only where holding
buys something. Bands go in order, with a small guaranteed share for the lower ones; tenants of a
band by virtual time in engine-seconds; a tenant's requests by deadline. Batch work enters an engine
only while its latency requests keep their promises by the engine's own model, trimmed by what is
measured. Requests that would wait too long are told so at arrival. Sources and evidence:
docs/decisions/0006.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Any, ClassVar

from sage_prefect.control_plane.admission import Drain, retry_after_s
from sage_prefect.control_plane.engine_load import SHARE, EngineLoad
from sage_prefect.control_plane.engine_model import fleet_profile
from sage_prefect.control_plane.engine_seconds import DEFAULT_OUTPUT, predicted_s, served_s, token_s
from sage_prefect.control_plane.events import (
    Band,
    BandSpec,
    Done,
    EngineGauges,
    EngineProfile,
    TenantSpec,
)
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS, ORDER_S, HybridParameters
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.queues import LAG_S, Accounts, BandQueue, ModelQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.service_shares import ServiceShares
from sage_prefect.control_plane.strategies.base import Refusal, SchedulingPolicy
from sage_prefect.control_plane.strategies.engine_choice import EngineChoice
from sage_prefect.control_plane.strategies.model_pool import ModelPool
from sage_prefect.control_plane.strategies.placement import Key, PlacementIndex

_UNKNOWN_COST_S = 0.01
_JUDGED_TOKENS = 8
"""A mean over fewer tokens says little of the whole answer's."""
_SHOWING_TOKENS = 32
"""A whole answer of fewer tells more of its prompt."""
_EXPLAINED = 8
_PROMOTED_AT_ONCE = 1024  # per tick: the others follow with the next one
_SPARED = 0.9
"""A call on a shared accelerator takes about half of it; of a promise so much may be used then."""


class HybridSchedulingPolicy(SchedulingPolicy):
    """The default policy; its parts can be switched off by ``parameters``."""

    name = "hybrid"
    merges = True
    parameters: ClassVar[HybridParameters] = HybridParameters()

    def __init__(
        self, ledger: Ledger, rng: Random, parameters: HybridParameters | None = None
    ) -> None:
        super().__init__(ledger, rng)
        self._parameters = parameters or self.parameters
        self._bands = dict(DEFAULT_BANDS)
        self._tenants: Mapping[str, TenantSpec] = {}
        self._accounts = {band: Accounts() for band in Band}
        self._pools: dict[str, ModelPool] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._index = PrefixIndex()
        self._shares = ServiceShares(self._parameters.over_share, self._parameters.over_least)
        self._running: dict[str, int] = {}
        self._parked: dict[str, list[tuple[ModelPool, BandQueue]]] = {}
        """Tenants at their limit of running requests, and where they are passed over."""
        self._least = PlacementIndex(ledger, _in_flight)
        self._ages: list[tuple[float, int, ScheduledRequest]] = []
        self._size = 0
        self._now = 0.0
        for entry in ledger:
            self.engine_changed(entry)

    def configure(self, bands: Mapping[Band, BandSpec], tenants: Mapping[str, TenantSpec]) -> None:
        self._bands = {**DEFAULT_BANDS, **bands}
        self._tenants = tenants
        for tenant in list(self._parked):
            self._unpark(tenant)

    # -- the queue ------------------------------------------------------------------------

    def add(self, request: ScheduledRequest, now: float) -> None:
        self._now = now
        pool = self._pool(request.info.model)
        band = request.info.band if self._parameters.bands else Band.INTERACTIVE
        request.band = band
        self._promise(request, now)
        request.cost_s = self._cost_s(pool, request)
        pool.queue.bands[band].push(request)
        pool.drain.queued[band] += request.cost_s
        pool.newest = request
        pool.touched = True
        self._size += 1
        limit = self._bands[band].age_limit_s
        if self._parameters.bands and limit is not None and band > Band.CRITICAL:
            self._age(request, request.queued_at + limit)
            if len(self._ages) > 1024 and len(self._ages) > 4 * self._size:
                self._ages = [
                    item
                    for item in self._ages
                    if item[2].waits_in is not None and item[2].ages_at == item[0]
                ]
                heapq.heapify(self._ages)
        if band is not Band.BATCH:
            pool.partition.arrived(now, request.info.prompt_tokens)

    def remove(self, request: ScheduledRequest) -> None:
        queue = request.waits_in
        if not isinstance(queue, BandQueue):
            return
        pool = self._pool(request.info.model)
        queue.remove(request)
        left = pool.drain.queued[request.band] - request.cost_s
        pool.drain.queued[request.band] = left if queue.size else 0.0
        self._size -= 1

    def admit(self, request: ScheduledRequest, now: float) -> Refusal | None:
        spec = self._bands[request.band]
        pool = self._pool(request.info.model)
        if not self._parameters.admission or spec.reject_share is None:
            return None
        if request.ttft_slo_s == math.inf:
            return None
        over = self._parameters.fair and self._shares.is_over(request.info.tenant)
        if not over and pool.queue.bands[request.band].size < self._parameters.at_least:
            # Nothing drains from an empty queue: its rate would say that all must go away.
            return None
        accounts = self._accounts[request.band]
        account = accounts.of(request.info.tenant)
        ahead, floor = math.inf, 0.25 * max(1, len(pool.loads))
        if self._parameters.fair:
            tenant = self._tenants.get(request.info.tenant)
            ahead = accounts.ahead_s(account, tenant.weight if tenant else 1.0)
        wait = pool.drain.wait_s(request.band, ahead, now, floor)
        if over:
            # It waits for room that others leave, not for its turn.
            own = account.cost_s - request.cost_s
            rate = account.rate(now, self._parameters.drain_tau)
            wait = max(wait, own / max(rate, 1e-3))
        allowed = spec.reject_share * (request.due - now)
        if wait <= allowed or account.below_at == -math.inf:
            account.below_at = now
            return None
        if now - account.below_at < self._parameters.standing:
            return None
        return Refusal(
            f"The request would wait about {wait:.1f} s, more than its band allows.",
            retry_after_s(wait - allowed, self.rng.random()),
        )

    def next_dispatch(self, now: float) -> tuple[ScheduledRequest, EngineEntry] | None:
        self._now = now
        if not self._size:
            return None
        for pool in self._pools.values():
            if pool.touched:
                picked = self._pick(pool, now)
                if picked is not None:
                    return picked
                pool.touched = False
        return None

    def pending(self) -> Iterator[ScheduledRequest]:
        everything = [r for pool in self._pools.values() for r in pool.queue.requests()]
        return iter(sorted(everything, key=lambda request: request.seq))

    def waiting_for(self, model: str) -> list[ScheduledRequest]:
        pool = self._pools.get(model)
        return [] if pool is None else sorted(pool.queue.requests(), key=lambda r: r.seq)

    def __len__(self) -> int:
        return self._size

    # -- embedding and rerank calls, which executors queue and place ------------------------

    def promise(self, request: ScheduledRequest, now: float) -> None:
        request.band = request.info.band if self._parameters.bands else Band.INTERACTIVE
        self._promise(request, now)

    def age_limit_s(self, band: Band) -> float | None:
        ages = self._parameters.bands and band > Band.CRITICAL
        return self._bands[band].age_limit_s if ages else None

    def allowed_wait_s(self, request: ScheduledRequest, now: float) -> float:
        share = self._bands[request.band].reject_share
        if not self._parameters.admission or share is None or request.ttft_slo_s == math.inf:
            return math.inf
        return share * (request.due - now)

    def most_running(self, tenant: str) -> int | None:
        spec = self._tenants.get(tenant)
        return None if spec is None else spec.max_running

    def debt_s(self, request: ScheduledRequest, queued_s: float) -> float:
        if not self._parameters.fair:
            return 0.0
        accounts, tenant = self._accounts[request.band], self._tenants.get(request.info.tenant)
        virtual = max(accounts.of(request.info.tenant).virtual, accounts.present - LAG_S)
        return max(0.0, virtual + queued_s / (tenant.weight if tenant else 1.0) - accounts.present)

    def charge(self, request: ScheduledRequest, seconds: float) -> None:
        accounts = self._accounts[request.band]
        account = accounts.of(self._flow(request))
        if seconds > 0:
            account.virtual = max(account.virtual, accounts.present - LAG_S)
        self._charge(request, seconds)
        if seconds > 0:
            accounts.present = max(accounts.present, account.virtual)

    def is_crowded(self, entry: EngineEntry, now: float) -> bool:
        load = self._loads.get(entry.name)
        if load is None or not load.latency or not load.model.known:
            return False
        promise = min(load.tightest_tpot(), self._pool(entry.spec.models[0]).choice.promise_s)
        tpot = load.model.tpot_s(load.running, load.context, load.prefill_rate(now))
        return tpot / (1.0 - SHARE) > _SPARED * promise

    # -- engines --------------------------------------------------------------------------

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
        for model in entry.spec.models:
            pool = self._pools.get(model)
            if pool is not None:
                pool.touched = True

    def adopt(self, request: ScheduledRequest, entry: EngineEntry, now: float) -> None:
        pool = self._pool(request.info.model)
        request.band = request.info.band if self._parameters.bands else Band.INTERACTIVE
        self._promise(request, now)
        request.cost_s = self._cost_s(pool, request)
        prompt = float(request.info.prompt_tokens)
        self._enter(request, self._loads[entry.name], prompt, now)
        if request.first_token_at is not None:
            self._loads[entry.name].first_token(request, now)

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
        load.first_token(request, now)
        request.progress_at = now
        if request.band is not Band.BATCH and request.ttft_slo_s < math.inf:
            load.window.saw_ttft((now - request.arrived) / request.ttft_slo_s)
        return self._touch(request)

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

    def left(
        self, request: ScheduledRequest, entry: EngineEntry, done: Done | None, now: float
    ) -> None:
        load = self._loads.get(entry.name)
        if load is None:
            return
        if done is not None and load.is_well:
            self._saw_answer(request, load, done.output_tokens or 0, now)
        load.leave(request, now)
        if self._parameters.fair and request.band is not Band.BATCH:
            self._shares.leave(request.info.tenant, request.share_s)
        self._running[request.info.tenant] = self._running.get(request.info.tenant, 1) - 1
        served = request.cost_s
        if done is not None:
            self._index_learn(request, entry, done)
            served = served_s(load.model, request, done)
            if done.output_tokens is not None and done.output_tokens > _JUDGED_TOKENS:
                self._judge_pace(request, load, done.output_tokens - 1, now)
            pool = self._pools.get(request.info.model)
            if request.band is not Band.BATCH and pool is not None:
                pool.partition.finished(done.output_tokens or request.chunks)
        elif request.first_token_at is None:
            served = 0.0
        self._charge(request, served - request.cost_s)
        if not self._running[request.info.tenant]:
            del self._running[request.info.tenant]
        if request.info.tenant in self._parked:
            self._unpark(request.info.tenant)
        self._touch(request)

    def refused(self, entry: EngineEntry, now: float) -> None:
        load = self._loads.get(entry.name)
        if load is not None:
            load.window.refused(load.running)

    def reported(self, entry: EngineEntry, gauges: EngineGauges, now: float) -> None:
        load = self._loads.get(entry.name)
        if load is not None and gauges.preemptions is not None:
            load.saw_preemptions(gauges.preemptions)

    # -- time -----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self._now = now
        for _ in range(_PROMOTED_AT_ONCE):
            if not self._ages or self._ages[0][0] > now:
                break
            at, _, request = heapq.heappop(self._ages)
            # One that came back from an engine has an item of its earlier wait, too.
            if isinstance(request.waits_in, BandQueue) and request.ages_at == at:
                request.ages_at = math.inf
                self._promote(request, request.waits_in, now)
        for pool in self._pools.values():
            if pool.queue.size:
                pool.touched = True
                pool.adapt(now)

    def wake_at(self, now: float) -> float:
        return now + self._parameters.tick if self._size else math.inf

    # -- explaining -----------------------------------------------------------------------

    def candidates(self, request: ScheduledRequest) -> list[dict[str, Any]]:
        pool = self._pools.get(request.info.model)
        listed: list[dict[str, Any]] = []
        for load in list(pool.loads.values())[:_EXPLAINED] if pool is not None else ():
            prompt = float(request.info.prompt_tokens)
            cached = self._index.cached_tokens(load.entry.name, request.info.prefix)
            listed.append(
                {
                    "engine": load.entry.name,
                    "state": load.entry.state.value,
                    "in_flight": len(load.entry.running),
                    "window": load.window.size,
                    "batch": [load.batch, load.window.batch],
                    "batch_preferred": load.batch_preferred,
                    "cached_tokens": round(cached),
                    "ttft_s": round(load.ttft(max(1.0, prompt - cached)), 4),
                    "tpot_s": round(load.tpot_with(self._now, prompt - cached, prompt), 5),
                }
            )
        return listed

    def scores(self, request: ScheduledRequest) -> list[tuple[str, float]]:
        pool = self._pools[request.info.model]
        return [(load.entry.name, score) for load, score, _ in pool.choice.looked_at]

    # -- inside: who ----------------------------------------------------------------------

    def _pick(self, pool: ModelPool, now: float) -> tuple[ScheduledRequest, EngineEntry] | None:
        pool.adapt(now)
        bands = pool.queue.bands
        for band in pool.order():
            passed: list[str] = []
            picked = self._pick_in(pool, band, passed, now)
            for tenant in passed:
                bands[band].unpark(tenant)
            if picked is not None:
                return picked
            # Room that this band could not use, a less urgent one may not either, except batch
            # work on engines that prefer it.
        return None

    def _pick_in(
        self, pool: ModelPool, band: Band, passed: list[str], now: float
    ) -> tuple[ScheduledRequest, EngineEntry] | None:
        """The next request of a band that may go; ``passed`` gets tenants that were passed over."""
        queue = pool.queue.bands[band]
        shared = self._parameters.fair and band is not Band.BATCH
        while (head := queue.head()) is not None:
            tenant = head.info.tenant
            if self._is_full(head):
                self._parked.setdefault(tenant, []).append((pool, queue))
                queue.park(tenant)
                continue
            over = shared and self._shares.is_over(tenant)
            chosen = pool.choice.choose(head, self._candidates(pool, head, now), now, over=over)
            if chosen is None and over and (short := pool.newest_of(tenant, queue)) is not None:
                # A long prompt that has to wait for room does not keep a short one from it.
                loads = self._candidates(pool, short, now)
                head, chosen = short, pool.choice.choose(short, loads, now, over=True)
            if chosen is None and over:
                # What it has to leave free is there for the others.
                queue.park(tenant)
                passed.append(tenant)
                continue
            if chosen is None:
                return None
            load, uncached = chosen
            self.remove(head)
            self._enter(head, load, uncached, now)
            if band is not Band.BATCH:
                pool.choice.saw_latency(head, uncached, now, usual=not over)
            queue.served(tenant, now)
            pool.served(head, self._bands)
            pool.drain.drained(band, head.cost_s, now)
            if over:
                account = self._accounts[band].of(tenant)
                account.drained(head.cost_s, now, self._parameters.drain_tau)
            return head, load.entry
        return None

    def _is_full(self, request: ScheduledRequest) -> bool:
        tenant = self._tenants.get(request.info.tenant)
        if tenant is None or tenant.max_running is None:
            return False
        return self._running.get(request.info.tenant, 0) >= tenant.max_running

    def _unpark(self, tenant: str) -> None:
        for pool, queue in self._parked.pop(tenant):
            queue.unpark(tenant)
            pool.touched = True

    def _meet(self, entry: EngineEntry) -> None:
        """Engines of one accelerator get to know each other."""
        together = [entry, *self.ledger.beside(entry)]
        for one in together:
            load = self._loads.get(one.name)
            if load is not None:
                load.neighbours = tuple(other for other in together if other is not one)

    def _candidates(
        self, pool: ModelPool, request: ScheduledRequest, now: float
    ) -> Collection[EngineLoad]:
        loads = pool.loads
        if len(loads) > self._parameters.scan:
            loads = self._sample(loads, request)
        for load in loads.values():
            if load.assumed or load.prefill or load.neighbours:
                load.look(now)
        return loads.values()

    def _sample(
        self, loads: dict[str, EngineLoad], request: ScheduledRequest
    ) -> dict[str, EngineLoad]:
        """Of many engines: the least loaded, two at random, the holders of its prefix."""
        model = request.info.model
        members = self.ledger.members(model)
        names = [self.rng.choice(members).name, self.rng.choice(members).name]
        least = self._least.best(model, request.tried)
        if least is not None:
            names.append(least.name)
        chosen = {name: loads[name] for name in names if name in loads}
        prefix = request.info.prefix
        if prefix and self._parameters.prefix:
            for name in self._index.holders(prefix):
                if name in loads:
                    chosen[name] = loads[name]
        return chosen

    def _promote(self, request: ScheduledRequest, queue: BandQueue, now: float) -> None:
        """Up by one band, if its tenant was not served for the age limit; it keeps its tenant, is
        charged there, and is as urgent as a new one."""
        limit = self._bands[request.band].age_limit_s
        due = math.inf if limit is None else queue.waits_since(request) + limit
        if due > now:
            if due < math.inf:
                self._age(request, due)
            return
        pool = self._pool(request.info.model)
        queue.served(request.info.tenant, now)
        self.remove(request)
        request.band = Band(request.band - 1)
        request.due = min(request.due, now + ORDER_S[request.band])
        pool.queue.bands[request.band].push(request)
        pool.drain.queued[request.band] += request.cost_s
        self._size += 1
        limit = self._bands[request.band].age_limit_s
        if limit is not None and request.band > Band.INTERACTIVE:
            self._age(request, now + limit)

    def _age(self, request: ScheduledRequest, at: float) -> None:
        request.ages_at = at
        heapq.heappush(self._ages, (at, request.seq, request))

    # -- inside: books --------------------------------------------------------------------

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

    def _promise(self, request: ScheduledRequest, now: float) -> None:
        spec, info = self._bands[request.band], request.info
        ttft = info.ttft_slo_s or spec.ttft_slo_s
        tpot = info.tpot_slo_s or spec.tpot_slo_s
        request.ttft_slo_s = ttft if ttft is not None else math.inf
        request.tpot_slo_s = tpot if tpot is not None else math.inf
        due = request.arrived + (ORDER_S[request.band] if ttft is None else ttft)
        if info.deadline is not None:
            due = min(due, info.deadline)
        request.due = due

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
        load = next(iter(pool.loads.values()), None)
        return _UNKNOWN_COST_S if load is None else predicted_s(load.model, request)

    def _enter(
        self, request: ScheduledRequest, load: EngineLoad, uncached: float, now: float
    ) -> None:
        prompt = float(request.info.prompt_tokens)
        # A stream tells how it grows; another answer is counted at half its length.
        output = request.info.output_estimate or DEFAULT_OUTPUT
        shown = 0.0 if request.info.stream else output / 2
        load.enter(request, uncached, prompt + shown, now, output - shown)
        request.cached = prompt - uncached
        request.chunks = 0
        if request.info.prefix and self._parameters.prefix:
            self._index.record(load.entry.name, request.info.prefix)
        self._running[request.info.tenant] = self._running.get(request.info.tenant, 0) + 1
        if self._parameters.fair and request.band is not Band.BATCH:
            tenant = self._tenants.get(request.info.tenant)
            request.share_s = request.cost_s
            self._shares.enter(
                request.info.tenant, tenant.weight if tenant else 1.0, request.cost_s
            )
        # Before its charge, which over a small weight may lie far ahead of all others.
        accounts = self._accounts[request.band]
        accounts.present = max(accounts.present, accounts.of(self._flow(request)).virtual)
        self._charge(request, request.cost_s)

    def _flow(self, request: ScheduledRequest) -> str:
        return request.info.tenant if self._parameters.fair else ""

    def _charge(self, request: ScheduledRequest, seconds: float) -> None:
        tenant = self._tenants.get(request.info.tenant)
        weight = tenant.weight if tenant is not None else 1.0
        self._accounts[request.band].of(self._flow(request)).charge(seconds / weight)

    def _index_learn(self, request: ScheduledRequest, entry: EngineEntry, done: Done) -> None:
        if done.cached_tokens is not None:
            self._index.learn(entry.name, request.cached, done.cached_tokens)

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
            load.sampled_at = now
        if request.chunks >= _JUDGED_TOKENS:
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

    def _judge_pace(
        self, request: ScheduledRequest, load: EngineLoad, tokens: int, now: float
    ) -> None:
        """Hold a latency request's mean time per token so far against its promise."""
        if request.band is Band.BATCH or request.tpot_slo_s == math.inf:
            return
        if request.first_token_at is not None and tokens > 0:
            pace = (now - request.first_token_at) / tokens
            load.window.saw_tpot(pace / request.tpot_slo_s)

    def _touch(self, request: ScheduledRequest) -> bool:
        pool = self._pools.get(request.info.model)
        if pool is None or not pool.queue.size:
            return False
        pool.touched = True
        return True


def _in_flight(entry: EngineEntry) -> Key:
    return (len(entry.running) / entry.spec.max_concurrency, entry.last_turn)
