"""What embedding calls may take of accelerators where LLM engines run too."""

from __future__ import annotations

import math
from collections.abc import Callable

from sage_prefect.control_plane.accelerator_split import AcceleratorSplit
from sage_prefect.control_plane.engine_load import SHARE
from sage_prefect.control_plane.executors.shared_sites import SharedSites
from sage_prefect.control_plane.ledger import EngineEntry, Ledger


class AcceleratorSharing(SharedSites):
    """Answers from the ledger, the split and the policy.

    Args:
        ledger: engines and what is inside each.
        split: which accelerators are lent, and the pace on the one that is shared.
        is_crowded: whether a call beside this LLM engine would break what it has promised.
    """

    def __init__(
        self, ledger: Ledger, split: AcceleratorSplit, is_crowded: Callable[[EngineEntry], bool]
    ) -> None:
        self._ledger = ledger
        self._split = split
        self._crowds = is_crowded

    def is_crowded(self, engine: str) -> bool:
        entry = self._ledger.get(engine)
        if entry is None or entry.spec.accelerator in self._ledger.lent:
            return False
        return any(self._crowds(other) for other in self._ledger.beside(entry))

    def opens_at(self, engine: str) -> float:
        entry = self._ledger.get(engine)
        if entry is None or entry.spec.accelerator is None:
            return -math.inf
        if entry.spec.accelerator in self._ledger.closed:
            return math.inf if self._is_used(entry) else -math.inf
        return (
            self._split.opens_at(entry.spec.accelerator) if self.is_crowded(engine) else -math.inf
        )

    def part(self, engine: str) -> float:
        entry = self._ledger.get(engine)
        if entry is None or entry.spec.accelerator is None or not self._is_used(entry):
            return 1.0
        if entry.spec.accelerator in self._ledger.closed:
            return 0.0
        if not self.is_crowded(engine):
            return SHARE
        return min(SHARE, self._ledger.shares.get(entry.spec.accelerator, SHARE))

    def _is_used(self, entry: EngineEntry) -> bool:
        return any(other.running for other in self._ledger.beside(entry))
