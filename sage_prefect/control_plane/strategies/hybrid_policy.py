"""``hybrid``: late binding, batch work beside latency work under its promises, fair to tenants.

A request waits at the gateway and is bound to an engine as late as possible, but only where holding
buys something. Bands go in order, with a small guaranteed share for the lower ones; tenants of a
band by virtual time in engine-seconds; a tenant's requests by deadline. Batch work enters an engine
only while its latency requests keep their promises by the engine's own model, trimmed by what is
measured. Requests that would wait too long are told so at arrival. Sources and evidence:
docs/decisions/0006.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import Any

from sage_prefect.control_plane.admission import retry_after_s
from sage_prefect.control_plane.age_heap import AgeHeap
from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.hybrid_parameters import ORDER_S, HybridParameters
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.queues import BandQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest, Told
from sage_prefect.control_plane.strategies.base import Refusal
from sage_prefect.control_plane.strategies.engine_choice import Scored
from sage_prefect.control_plane.strategies.model_pool import ModelPool
from sage_prefect.control_plane.strategies.occupancy import Occupancy

_EXPLAINED = 8
_PROMOTED_AT_ONCE = 1024  # per tick: the others follow with the next one


class HybridSchedulingPolicy(Occupancy):
    """The default policy; its parts can be switched off by ``parameters``."""

    name = "hybrid"

    def __init__(
        self, ledger: Ledger, rng: Random, parameters: HybridParameters | None = None
    ) -> None:
        super().__init__(ledger, rng, parameters)
        self._ages: AgeHeap[ScheduledRequest] = AgeHeap(_waits, self.__len__)

    # -- the queue -------------------------------------------------------------------------

    def arrive(self, request: ScheduledRequest, now: float) -> EngineEntry | None:
        """Straight to its engine, past queue and ages, where nothing waits and nobody is held back.

        All books that outlive the dispatch are kept as :meth:`add` and :meth:`next_dispatch` do.
        """
        parameters, info = self._parameters, request.info
        band = info.band if parameters.bands else Band.INTERACTIVE
        is_latency = band is not Band.BATCH
        if (
            self._size
            or self._parked
            or (is_latency and parameters.fair and self._shares.is_over(info.tenant))
            or (self._tenants and self._is_full(request))
        ):
            self.add(request, now)
            return None
        self._now = now
        pool = self._pool(info.model)
        request.band = band
        self._promise(request, now)
        request.cost_s = self._cost_s(pool, request)
        account = self._accounts[band].lift(info.tenant)
        if is_latency:
            pool.partition.arrived(now, info.prompt_tokens)
        if len(self._pools) > 1:
            self._look_before(pool, now)
        if now >= pool.adapt_at:
            pool.adapt(now)
        chosen = pool.choice.choose(request, self._candidates(pool, request), now)
        if chosen is None:
            self._join(pool, request)
            pool.touched = False  # it has been looked at
            return None
        load, uncached = chosen
        pool.newest = request
        self._enter(request, load, uncached, now, account if parameters.fair else None)
        if is_latency:
            pool.choice.saw_latency(request, uncached, now)
        if band > Band.INTERACTIVE:
            pool.served(request, self._bands)
        pool.drain.drained(band, request.cost_s, now)
        return load.entry

    def _look_before(self, pool: ModelPool, now: float) -> None:
        """Pools that :meth:`next_dispatch` would ask before this one; nothing waits there."""
        for other in self._pools.values():
            if other is pool:
                break
            if other.touched:
                other.adapt(now)
                other.touched = False

    def add(self, request: ScheduledRequest, now: float) -> None:
        self._now = now
        pool = self._pool(request.info.model)
        self.promise(request, now)
        request.cost_s = self._cost_s(pool, request)
        self._join(pool, request)
        if request.band is not Band.BATCH:
            pool.partition.arrived(now, request.info.prompt_tokens)

    def _join(self, pool: ModelPool, request: ScheduledRequest) -> None:
        self._push(pool, request)
        pool.newest = request
        pool.touched = True
        limit = self.age_limit_s(request.band)
        if limit is not None:
            self._ages.push(request, request.queued_at + limit)

    def _push(self, pool: ModelPool, request: ScheduledRequest) -> None:
        pool.queue.bands[request.band].push(request)
        pool.drain.queued[request.band] += request.cost_s
        self._size += 1

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

    # -- time ------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self._now = now
        for request in islice(self._ages.old(now), _PROMOTED_AT_ONCE):
            self._promote(request, now)
        for pool in self._pools.values():
            if pool.queue.size:
                pool.touched = True
                pool.adapt(now)

    def wake_at(self, now: float) -> float:
        return now + self._parameters.tick if self._size else math.inf

    # -- explaining ------------------------------------------------------------------------

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

    def scores(self, request: ScheduledRequest) -> Told:
        return _listed, self._pools[request.info.model].choice.looked_at

    # -- inside: who -----------------------------------------------------------------------

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
            over = self._shares.over(tenant) if shared else 0.0
            chosen = pool.choice.choose(head, self._candidates(pool, head), now, over=over)
            if (
                chosen is None
                and over > 0.0
                and (short := pool.newest_of(tenant, queue)) is not None
            ):
                # A long prompt that has to wait for room does not keep a short one from it.
                loads = self._candidates(pool, short)
                head, chosen = short, pool.choice.choose(short, loads, now, over=over)
            if chosen is None and over > 0.0:
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
                pool.choice.saw_latency(head, uncached, now, usual=over <= 0.0)
            queue.served(tenant, now)
            pool.served(head, self._bands)
            pool.drain.drained(band, head.cost_s, now)
            if over > 0.0:
                account = self._accounts[band].of(tenant)
                account.drained(head.cost_s, now, self._parameters.drain_tau)
            return head, load.entry
        return None

    def _promote(self, request: ScheduledRequest, now: float) -> None:
        """Up by one band, if its tenant was not served for the age limit; it keeps its tenant, is
        charged there, and is as urgent as a new one."""
        pool = self._pool(request.info.model)
        queue = pool.queue.bands[request.band]
        limit = self._bands[request.band].age_limit_s
        if limit is None:
            return
        due = queue.waits_since(request) + limit
        if due > now:
            self._ages.push(request, due)
            return
        queue.served(request.info.tenant, now)
        self.remove(request)
        request.band = Band(request.band - 1)
        request.due = min(request.due, now + ORDER_S[request.band])
        self._push(pool, request)
        limit = self._bands[request.band].age_limit_s
        if limit is not None and request.band > Band.INTERACTIVE:
            self._ages.push(request, now + limit)


def _waits(request: ScheduledRequest) -> bool:
    return request.waits_in is not None


def _listed(scored: Iterable[Scored]) -> list[tuple[str, float]]:
    return [(load.entry.name, score) for load, score, _ in scored]
