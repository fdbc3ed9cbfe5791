"""The hybrid policy's books of tenants: promises, virtual time, shares, limits of what runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import ClassVar

from sage_prefect.control_plane.events import (
    Band,
    BandSpec,
    TenantSpec,
)
from sage_prefect.control_plane.hybrid_parameters import DEFAULT_BANDS, ORDER_S, HybridParameters
from sage_prefect.control_plane.ledger import Ledger
from sage_prefect.control_plane.queues import LAG_S, Accounts, BandQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.service_shares import ServiceShares
from sage_prefect.control_plane.strategies.base import SchedulingPolicy
from sage_prefect.control_plane.strategies.model_pool import ModelPool


class TenantBooks(SchedulingPolicy):
    """What is promised to requests, and what their tenants have got."""

    merges = True
    parameters: ClassVar[HybridParameters] = HybridParameters()

    def __init__(self, ledger: Ledger, rng: Random, parameters: HybridParameters | None) -> None:
        super().__init__(ledger, rng)
        self._parameters = parameters or self.parameters
        self._bands = dict(DEFAULT_BANDS)
        self._tenants: Mapping[str, TenantSpec] = {}
        self._accounts = {band: Accounts() for band in Band}
        self._shares = ServiceShares(self._parameters.over_share, self._parameters.over_least)
        self._running: dict[str, int] = {}
        self._parked: dict[str, list[tuple[ModelPool, BandQueue]]] = {}
        """Tenants at their limit of running requests, and where they are passed over."""

    def configure(self, bands: Mapping[Band, BandSpec], tenants: Mapping[str, TenantSpec]) -> None:
        self._bands = {**DEFAULT_BANDS, **bands}
        self._tenants = tenants
        for tenant in list(self._parked):
            self._unpark(tenant)

    # -- embedding and rerank calls, which executors queue and place -----------------------

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

    # -- inside ----------------------------------------------------------------------------

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

    def _is_full(self, request: ScheduledRequest) -> bool:
        tenant = self._tenants.get(request.info.tenant)
        if tenant is None or tenant.max_running is None:
            return False
        return self._running.get(request.info.tenant, 0) >= tenant.max_running

    def _unpark(self, tenant: str) -> None:
        for pool, queue in self._parked.pop(tenant):
            queue.unpark(tenant)
            pool.touched = True

    def _flow(self, request: ScheduledRequest) -> str:
        return request.info.tenant if self._parameters.fair else ""

    def _charge(self, request: ScheduledRequest, seconds: float) -> None:
        tenant = request.info.tenant
        spec = self._tenants.get(tenant) if self._tenants else None
        if spec is not None:
            seconds /= spec.weight
        self._accounts[request.band].of(tenant if self._parameters.fair else "").charge(seconds)
