"""What is inside the engines of the hybrid policy: what a request takes there, and gives back."""

from __future__ import annotations

import math

from sage_prefect.control_plane.engine_load import EngineLoad
from sage_prefect.control_plane.engine_seconds import DEFAULT_OUTPUT, served_s
from sage_prefect.control_plane.events import (
    Band,
    Done,
)
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.queues import Account
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.engine_fleet import JUDGED_TOKENS, EngineFleet


class Occupancy(EngineFleet):
    """The books of requests that go into engines and leave them: loads, shares and accounts."""

    def adopt(self, request: ScheduledRequest, entry: EngineEntry, now: float) -> None:
        pool = self._pool(request.info.model)
        self.promise(request, now)
        request.cost_s = self._cost_s(pool, request)
        prompt = float(request.info.prompt_tokens)
        self._enter(request, self._loads[entry.name], prompt, now)
        if request.first_token_at is not None:
            self._loads[entry.name].first_token(request, now)

    def left(
        self, request: ScheduledRequest, entry: EngineEntry, done: Done | None, now: float
    ) -> None:
        engine, info = entry.spec.name, request.info
        tenant, running = info.tenant, self._running
        load = self._loads.get(engine)
        if load is None:
            return
        if done is not None and load.is_well:
            self._saw_answer(request, load, done.output_tokens or 0, now)
        load.leave(request, now)
        is_latency = request.band is not Band.BATCH
        if is_latency and self._parameters.fair:
            self._shares.leave(tenant, request.share_s)
        left = running.get(tenant, 1) - 1
        if left:
            running[tenant] = left
        else:
            running.pop(tenant, None)
        served = request.cost_s
        if done is not None:
            if done.cached_tokens is not None:
                self._index.learn(engine, request.cached, done.cached_tokens)
            output = done.output_tokens
            served = served_s(load.model, request, done)
            if (
                output is not None
                and output > JUDGED_TOKENS
                and is_latency
                and request.tpot_slo_s < math.inf
            ):
                self._judge_pace(request, load, output - 1, now)
            if is_latency and (pool := self._pools.get(info.model)) is not None:
                pool.partition.finished(output or request.chunks)
        elif request.first_token_at is None:
            served = 0.0
        self._charge(request, served - request.cost_s)
        if self._parked and tenant in self._parked:
            self._unpark(tenant)
        if self._size:
            self._touch(request)

    def _enter(
        self,
        request: ScheduledRequest,
        load: EngineLoad,
        uncached: float,
        now: float,
        account: Account | None = None,
    ) -> None:
        info, parameters, cost_s = request.info, self._parameters, request.cost_s
        tenant, band = info.tenant, request.band
        prompt = float(info.prompt_tokens)
        # A stream tells how it grows; another answer is counted at half its length.
        output = info.output_estimate or DEFAULT_OUTPUT
        shown = 0.0 if info.stream else output / 2
        load.enter(request, uncached, prompt + shown, now, output - shown)
        request.cached = prompt - uncached
        request.chunks = 0
        if info.prefix and parameters.prefix:
            self._index.record(load.entry.spec.name, info.prefix)
        self._running[tenant] = self._running.get(tenant, 0) + 1
        spec = self._tenants.get(tenant) if self._tenants else None
        weight = 1.0 if spec is None else spec.weight
        if parameters.fair and band is not Band.BATCH:
            request.share_s = cost_s
            self._shares.enter(tenant, weight, cost_s)
        accounts = self._accounts[band]
        if account is None:
            account = accounts.of(tenant if parameters.fair else "")
        # Before its charge, which over a small weight may lie far ahead of all others.
        if account.virtual > accounts.present:
            accounts.present = account.virtual
        account.charge(cost_s / weight)
