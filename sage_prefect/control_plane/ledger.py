"""Who runs where: engines, their windows, and the requests inside each.

Load comes from this ledger alone: an engine's own gauges trail dispatch by seconds
(vLLM issue 49538), which is long enough to pile hundreds of requests on one engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sage_prefect.control_plane.events import EngineSpec, EngineState

_READY, _WARMING = EngineState.READY, EngineState.WARMING
_SERVING = (_READY, _WARMING)
_NO_POOL: dict[str, EngineEntry] = {}


@dataclass(slots=True, eq=False)
class EngineEntry:
    """One engine as the scheduler sees it."""

    spec: EngineSpec
    state: EngineState = EngineState.READY
    running: set[str] = field(default_factory=set)
    """Ids of the requests inside it, one call each."""
    batches: set[int] = field(default_factory=set)
    """Numbers of the batches inside it, one call each."""
    last_turn: int = 0
    """Number of the dispatch that it got last: orders engines by how long they wait for a turn."""
    version: int = 0
    """Rises with every change, so that an index can tell stale entries from live ones."""
    answered: bool = False
    """It has been up: when it is away, it is worth waiting for."""
    leaving: bool = False
    """Removed; stays until the requests inside it have ended."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def in_flight(self) -> int:
        """Calls inside it."""
        return len(self.running) + len(self.batches)

    def has_room(self) -> bool:
        """Whether it may take a call now."""
        state = self.state
        return (
            len(self.running) + len(self.batches) < self.spec.max_concurrency
            and (state is _READY or state is _WARMING)
            and not self.leaving
        )

    @property
    def room(self) -> int:
        """Calls that it may take now."""
        if self.leaving or self.state not in _SERVING:
            return 0
        return max(0, self.spec.max_concurrency - len(self.running) - len(self.batches))


class Ledger:
    """All engines by name and by model, and each running request's engine."""

    def __init__(self) -> None:
        self._engines: dict[str, EngineEntry] = {}
        self._pools: dict[str, dict[str, EngineEntry]] = {}
        self._members: dict[str, tuple[EngineEntry, ...]] = {}
        self._accelerators: dict[str, dict[str, EngineEntry]] = {}
        self.lent: set[str] = set()
        """Accelerators that LLM requests leave to embedding calls."""
        self.closed: set[str] = set()
        """Accelerators that embedding calls leave to LLM requests, while those use them."""
        self.shares: dict[str, float] = {}
        """Accelerators that are neither: what embedding calls get of their time beside LLM
        requests, 0 to 1."""
        self._turn = 0
        self._last_version = 0
        """Highest version of an engine that is gone: another of its name begins above it."""

    # -- reading --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[EngineEntry]:
        return iter(self._engines.values())

    def get(self, engine: str) -> EngineEntry | None:
        """The engine of this name, also while it leaves."""
        return self._engines.get(engine)

    def pool(self, model: str) -> Mapping[str, EngineEntry]:
        """The engines that serve ``model``, whatever their state; empty for an unknown model."""
        return self._pools.get(model, _NO_POOL)

    def members(self, model: str) -> tuple[EngineEntry, ...]:
        """The engines of :meth:`pool`, to be drawn from by number."""
        members = self._members.get(model)
        if members is None:
            members = self._members[model] = tuple(self.pool(model).values())
        return members

    def models(self) -> list[str]:
        """Names of all models that some engine serves."""
        return sorted(self._pools)

    def beside(self, entry: EngineEntry) -> Iterator[EngineEntry]:
        """The other engines on the same accelerator, also while they leave."""
        for other in self._accelerators.get(entry.spec.accelerator or "", {}).values():
            if other is not entry:
                yield other

    def accelerators(self) -> Iterator[tuple[str, Iterable[EngineEntry]]]:
        """Each accelerator with the engines on it."""
        for name, entries in self._accelerators.items():
            yield name, entries.values()

    def in_flight(self) -> int:
        """Requests inside all engines, batches left out."""
        return sum(len(entry.running) for entry in self._engines.values())

    # -- engines come and go --------------------------------------------------------------

    def add(self, spec: EngineSpec) -> EngineEntry:
        """Register an engine, or give a known one its new specification.

        Requests still inside an engine of that name keep counting against its window.
        """
        entry = self._engines.get(spec.name)
        if entry is None:
            entry = EngineEntry(spec, version=self._last_version)
            self._engines[spec.name] = entry
        else:
            self._leave_pools(entry)
            self._leave_accelerator(entry)
            entry.spec, entry.leaving = spec, False
        entry.state = EngineState.COLD if spec.cold else EngineState.READY
        if spec.accelerator:
            self._accelerators.setdefault(spec.accelerator, {})[spec.name] = entry
        self._members.clear()
        for model in spec.models:
            self._pools.setdefault(model, {})[spec.name] = entry
        entry.version += 1
        return entry

    def remove(self, engine: str) -> EngineEntry | None:
        """Take an engine out of all pools; it is forgotten once it is empty."""
        entry = self._engines.get(engine)
        if entry is None or entry.leaving:
            return None
        self._leave_pools(entry)
        entry.leaving = True
        entry.version += 1
        self._forget_if_gone(entry)
        return entry

    def set_state(self, engine: str, state: EngineState) -> EngineEntry | None:
        """Note an engine's state; None when it is unknown or the state is not new."""
        entry = self._engines.get(engine)
        if entry is None or entry.leaving or entry.state is state:
            return None
        entry.state = state
        entry.version += 1
        return entry

    def answers(self, engine: str) -> None:
        """A known engine has answered a request."""
        self._engines[engine].answered = True

    # -- requests enter and leave engines -------------------------------------------------

    def charge(self, engine: str, request_id: str) -> EngineEntry:
        """Put a request into an engine's window.

        Raises:
            RuntimeError: the window is full or the engine takes nothing: a policy broke its word.
        """
        entry = self._engines[engine]
        running = entry.running
        if request_id in running or not entry.has_room():
            raise _full(entry, request_id)
        running.add(request_id)
        self._turn += 1
        entry.last_turn = self._turn
        entry.version += 1
        return entry

    def charge_batch(self, engine: str, batch_id: int) -> EngineEntry:
        """Put a batch, which is one call, into an engine's window.

        Raises:
            RuntimeError: the window is full or the engine takes nothing: an executor has a bug.
        """
        entry = self._engines[engine]
        if batch_id in entry.batches or not entry.has_room():
            raise _full(entry, batch_id)
        entry.batches.add(batch_id)
        self._turn += 1
        entry.last_turn = self._turn
        entry.version += 1
        return entry

    def settle(self, engine: str, request_id: str) -> EngineEntry:
        """Take a request out of its engine's window.

        Raises:
            RuntimeError: it is not there: the manager's books are wrong.
        """
        entry = self._engines.get(engine)
        if entry is None or request_id not in entry.running:
            raise RuntimeError(
                f"request {request_id!r} is not in engine {engine!r}. This is a bug."
            )
        entry.running.remove(request_id)
        entry.version += 1
        if entry.leaving:
            self._forget_if_gone(entry)
        return entry

    def settle_batch(self, engine: str, batch_id: int) -> EngineEntry:
        """Take a batch out of its engine's window.

        Raises:
            RuntimeError: it is not there: the books are wrong.
        """
        entry = self._engines.get(engine)
        if entry is None or batch_id not in entry.batches:
            raise RuntimeError(f"batch {batch_id} is not in engine {engine!r}. This is a bug.")
        entry.batches.remove(batch_id)
        entry.version += 1
        self._forget_if_gone(entry)
        return entry

    # -- inside ---------------------------------------------------------------------------

    def _leave_accelerator(self, entry: EngineEntry) -> None:
        shared = self._accelerators.get(entry.spec.accelerator or "")
        if shared is not None:
            shared.pop(entry.name, None)
            if not shared:
                del self._accelerators[entry.spec.accelerator or ""]

    def _leave_pools(self, entry: EngineEntry) -> None:
        self._members.clear()
        for model in entry.spec.models:
            pool = self._pools.get(model)
            if pool is not None:
                pool.pop(entry.name, None)
                if not pool:
                    del self._pools[model]

    def _forget_if_gone(self, entry: EngineEntry) -> None:
        if entry.leaving and not entry.in_flight and self._engines.get(entry.name) is entry:
            del self._engines[entry.name]
            self._last_version = max(self._last_version, entry.version)
            self._leave_accelerator(entry)


def _full(entry: EngineEntry, what: str | int) -> RuntimeError:
    return RuntimeError(
        f"dispatch of {what!r} to engine {entry.name!r} over its window "
        f"({entry.in_flight}/{entry.spec.max_concurrency}, {entry.state.value}). "
        "This is a bug."
    )
