"""Engines come, go and change their state: who waits for them is told."""

from __future__ import annotations

from collections.abc import Iterable

from sage_prefect.control_plane.configuration_events import ConfigurationEvents
from sage_prefect.control_plane.event_bounds import bounded_gauges, is_measurable
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    EngineState,
)
from sage_prefect.control_plane.ledger import EngineEntry

_SERVING = (EngineState.READY, EngineState.WARMING)


class EngineEvents(ConfigurationEvents):
    """The control plane's events of engines."""

    def _on_engine_added(self, event: EngineAdded, now: float) -> list[Action]:
        spec = event.spec
        if not spec.name or not spec.models or not is_measurable(spec):
            return self._ignore()
        known = self.ledger.get(spec.name)
        dropped = set(known.spec.models) - set(spec.models) if known is not None else set()
        self._engine_changed(self.ledger.add(spec))
        self._note_outages({*spec.models, *dropped}, now)
        return self._pump(now) + self._refuse_orphans(dropped, now)

    def _on_engine_removed(self, event: EngineRemoved, now: float) -> list[Action]:
        entry = self.ledger.get(event.engine)
        if entry is None:
            return self._ignore()
        actions: list[Action] = []
        if event.abort:
            # The driver answers each Abort with Failed or Done; the books close then.
            why = "engine removed"
            actions += [Abort(r, event.engine, why) for r in sorted(entry.running)]
            actions += [AbortBatch(b, event.engine, why) for b in sorted(entry.batches)]
        removed = self.ledger.remove(event.engine)
        if removed is not None:
            self._engine_changed(removed)
            self._note_outages(removed.spec.models, now)
            actions += self._refuse_orphans(set(removed.spec.models), now)
            actions += self._pump(now)
        return actions

    def _on_engine_report(self, event: EngineReport, now: float) -> list[Action]:
        entry = self.ledger.get(event.engine)
        if entry is None or entry.leaving:
            return self._ignore()
        if event.state in _SERVING:
            entry.answered = True
        if event.gauges is not None:
            self.policy.reported(entry, bounded_gauges(event.gauges), now)
        changed = self.ledger.set_state(event.engine, event.state)
        if changed is None:
            return []
        self._engine_changed(changed)
        self._note_outages(changed.spec.models, now)
        return self._pump(now)

    # -- inside ----------------------------------------------------------------------------

    def _engine_changed(self, entry: EngineEntry) -> None:
        self.policy.engine_changed(entry)
        self._lane.engine_changed(entry)

    def _note_outages(self, models: Iterable[str], now: float) -> None:
        self._outages.note(sorted(models), now, self.limits.unavailable_wait_s)

    def _may_wait_for_return(self, model: str) -> bool:
        return self.limits.unavailable_wait_s > 0 and self._outages.may_end(model)

    def _refuse_orphans(self, models: set[str], now: float) -> list[Action]:
        """Requests that wait for a model which no engine serves any more."""
        refused: list[Action] = []
        for model in sorted(models):
            if self.ledger.pool(model):
                continue
            for request in self._waiting_for(model):
                self._dequeue(request)
                refused.append(self._book.refuse_unavailable(request, now))
        return refused
