"""The configuration changes while requests wait and run: policy, limits, bands and tenants."""

from __future__ import annotations

import math

from sage_prefect.control_plane.dispatching import Dispatching
from sage_prefect.control_plane.event_bounds import (
    are_limits,
    is_promise,
    is_share,
)
from sage_prefect.control_plane.events import (
    Action,
    BandsChanged,
    LimitsChanged,
    PolicyChanged,
    TenantsChanged,
)
from sage_prefect.control_plane.strategies import POLICIES, make_policy


class ConfigurationEvents(Dispatching):
    """The control plane's events of its configuration: nothing that waits or runs is lost."""

    def _on_policy_changed(self, event: PolicyChanged, now: float) -> list[Action]:
        if event.policy not in POLICIES:
            return self._ignore()
        before, after = self.policy, make_policy(event.policy, self.ledger, self._rng)
        after.configure(self._bands, self._tenants)
        # Before what is queued: it counts against the tenants' limits.
        for request in self._book.live.values():
            entry = self.ledger.get(request.engine or "")
            in_lane = request.request_id in self._lane
            if request.state == "running" and entry is not None and not in_lane:
                after.adopt(request, entry, now)
        waiting = [*before.pending(), *self._lane.surrender()]
        self.policy = self._lane.policy = after
        for request in sorted(waiting, key=lambda request: request.seq):
            request.note(now, "policy changed", policy=event.policy)
            request.waits_in, request.ages_at = None, math.inf
            self._queue(request, now)
        return self._pump(now)

    def _on_limits_changed(self, event: LimitsChanged, now: float) -> list[Action]:
        if not are_limits(event.limits):
            return self._ignore()
        self._book.limits = event.limits
        return []

    def _on_bands_changed(self, event: BandsChanged, now: float) -> list[Action]:
        if not all(is_promise(spec) for spec in event.bands):
            return self._ignore()
        self._bands.update({spec.band: spec for spec in event.bands})
        self.policy.configure(self._bands, self._tenants)
        return self._pump(now)

    def _on_tenants_changed(self, event: TenantsChanged, now: float) -> list[Action]:
        if not all(is_share(spec) for spec in event.tenants):
            return self._ignore()
        self._tenants = {spec.name: spec for spec in event.tenants}
        self.policy.configure(self._bands, self._tenants)
        self._lane.limits_changed()
        return self._pump(now)
