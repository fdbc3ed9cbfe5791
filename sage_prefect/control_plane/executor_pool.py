"""The executors of all models: each is told its engines' states and how many calls fit in them."""

from __future__ import annotations

import math
from itertools import count

from sage_prefect.control_plane.accelerator_split import Speed
from sage_prefect.control_plane.events import BatchPart, EngineSpec
from sage_prefect.control_plane.executors.embedding_executor import EmbeddingExecutor
from sage_prefect.control_plane.executors.shared_sites import SharedSites
from sage_prefect.control_plane.ledger import EngineEntry, Ledger

_CALLS_INSIDE = {"sentence-transformers": 2}
"""Of drivers whose server works on one batch at a time: one in work and one that waits."""

Formed = tuple[EmbeddingExecutor, int, str, tuple[BatchPart, ...]]
"""(executor, batch number, engine, parts)"""


def most_calls(spec: EngineSpec) -> int:
    """Batches that may be inside an engine at once: more would only wait there, out of order."""
    return min(spec.max_concurrency, _CALLS_INSIDE.get(spec.driver, spec.max_concurrency))


class ExecutorPool:
    """One executor per model that has embedding or rerank calls.

    Args:
        ledger: the engines and what is inside each.
        sites: see :class:`EmbeddingExecutor`.
    """

    def __init__(self, ledger: Ledger, sites: SharedSites) -> None:
        self._ledger = ledger
        self._sites = sites
        self._batch_ids = count(1)
        self._executors: dict[str, EmbeddingExecutor] = {}
        # In order of notice, so that a replay asks them in the same order.
        self._touched: dict[str, None] = {}
        self._wake: dict[str, float] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self.of_engine: dict[str, dict[str, None]] = {}
        """Models whose executors know an engine, in order of notice."""

    def of(self, model: str) -> EmbeddingExecutor:
        """The model's executor; a new one knows all engines of the model."""
        executor = self._executors.get(model)
        if executor is None:
            executor = EmbeddingExecutor(model, self._batch_ids, self._sites)
            self._executors[model] = executor
            for entry in self._ledger.pool(model).values():
                self._tell(executor, entry)
        return executor

    def speed(self, model: str) -> Speed | None:
        """How fast the model's engines are; None where no executor has any on an accelerator."""
        executor = self._executors.get(model)
        return None if executor is None else executor.speed()

    def engine_changed(self, entry: EngineEntry) -> None:
        """An engine came, left, or changed its state or specification."""
        name = entry.name
        models = () if entry.leaving else entry.spec.models
        known = self.of_engine.get(name, {})
        for model in [model for model in known if model not in models]:
            del known[model]
            self._slots.pop((name, model), None)
            self._executors[model].engine_gone(name)
            self.touch(model)  # what avoided other engines for it may have to go there
        if not known:
            self.of_engine.pop(name, None)
        for model in models:
            executor = self._executors.get(model)
            if executor is not None:
                self._tell(executor, entry)

    def load_changed(self, entry: EngineEntry) -> None:
        """An engine took or finished a call: others that share its window may have more or less."""
        for model in self.of_engine.get(entry.name, ()):
            executor = self._executors[model]
            slots = self._free_slots(executor, entry)
            if slots != self._slots[entry.name, model]:
                self._tell(executor, entry)

    def touch(self, model: str) -> None:
        """Something may be able to go: ask its executor again."""
        self._touched[model] = None

    def next_batch(self, now: float) -> Formed | None:
        """The next batch of any executor that was touched; to be asked until None."""
        while self._touched:
            model = next(iter(self._touched))
            executor = self._executors.get(model)
            formed = None if executor is None else executor.next_batch(now)
            if executor is not None and formed is not None:
                return executor, *formed
            del self._touched[model]
            at = math.inf if executor is None else executor.wake_at
            if at < math.inf:
                self._wake[model] = at
            else:
                self._wake.pop(model, None)
        return None

    def wake_at(self) -> float:
        """When an executor is to be asked again although nothing happened; infinity: never."""
        return min(self._wake.values(), default=math.inf)

    def wake(self, now: float) -> None:
        """Touch the executors whose time has come."""
        for model in [model for model, at in self._wake.items() if at <= now]:
            self.touch(model)

    def forget_idle(self, model: str) -> None:
        """Drop an executor that has no engines, requests or batches."""
        executor = self._executors.get(model)
        if executor is None or len(executor) or executor.open_batches:
            return
        if not self._ledger.pool(model):
            del self._executors[model]
            self._wake.pop(model, None)

    # -- inside ---------------------------------------------------------------------------

    def _free_slots(self, executor: EmbeddingExecutor, entry: EngineEntry) -> int:
        own = len(executor.batches_in(entry.name))
        others = entry.in_flight - own
        return max(0, min(most_calls(entry.spec), entry.spec.max_concurrency - others))

    def _tell(self, executor: EmbeddingExecutor, entry: EngineEntry) -> None:
        slots = self._free_slots(executor, entry)
        self._slots[entry.name, executor.model] = slots
        self.of_engine.setdefault(entry.name, {})[executor.model] = None
        executor.engine_changed(entry.name, entry.spec, entry.state, slots)
        self.touch(executor.model)
