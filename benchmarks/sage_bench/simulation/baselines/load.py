"""Baselines that look at load alone, and static partitions."""

from __future__ import annotations

from collections.abc import Sequence

from sage_bench.simulation.baselines.base import Engine, RoutingBaseline
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Band, RequestInfo


def _least(engines: list[Engine], turn: int) -> Engine:
    """The engine with the fewest requests inside; ties take turns."""
    count = len(engines)
    return min(
        (engines[(turn + i) % count] for i in range(count)), key=lambda engine: engine.in_flight
    )


class RoundRobin(RoutingBaseline):
    """Engines in turn."""

    name = "round_robin"

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        self._turn += 1
        return engines[self._turn % len(engines)]


class LeastOutstanding(RoutingBaseline):
    """nginx's ``least_conn``: fewest requests inside."""

    name = "least_outstanding"

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        self._turn += 1
        return _least(engines, self._turn)


class LeastOutstandingBySpeed(RoutingBaseline):
    """An oracle for unequal engines: fewest requests inside per true speed.

    Args:
        speeds: engine name -> relative speed; those not named have 1.
        changes: (time in seconds, engine, new speed), told at that very moment.
    """

    name = "least_outstanding_by_speed"

    def __init__(
        self,
        speeds: dict[str, float] | None = None,
        changes: Sequence[tuple[float, str, float]] = (),
    ) -> None:
        super().__init__()
        self._speeds = dict(speeds or {})
        self._changes = sorted((at, engine, speed) for at, engine, speed in changes)
        every = [*self._speeds.values(), *(change[2] for change in self._changes)]
        if any(not speed > 0 for speed in every):
            raise SettingsError(f"speeds {every} must be above 0.")

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        while self._changes and self._changes[0][0] <= self.now:
            _, name, speed = self._changes.pop(0)
            self._speeds[name] = speed
        return min(engines, key=lambda e: (e.in_flight + 1) / self._speeds.get(e.name, 1.0))


class StaticSplit(RoutingBaseline):
    """The first ``latency`` engines of a model serve all bands but batch, the others batch only;
    fewest requests inside within each part.

    Args:
        latency: how many engines.
    """

    name = "static_split"

    def __init__(self, latency: int = 1) -> None:
        super().__init__()
        if latency < 1:
            raise SettingsError(f"static_split: latency={latency} must be at least 1.")
        self._latency = latency
        self._turn = 0

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        self._turn += 1
        part = engines[self._latency :] if info.band is Band.BATCH else engines[: self._latency]
        return _least(part or engines, self._turn)


class SeparatePools(RoutingBaseline):
    """Of engines that could serve both, the first ``embedding`` serve embeddings only, the others
    LLM work only: services apart, each behind its own balancer.

    Args:
        embedding: how many GPUs serve embeddings.
        gpus: how many there are; an engine's GPU is the number at the end of its name.
    """

    name = "separate_pools"

    def __init__(self, embedding: int = 1) -> None:
        super().__init__()
        if embedding < 1:
            raise SettingsError(f"separate_pools: embedding={embedding} must be at least 1.")
        self._embedding = embedding
        self._turn = 0

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        self._turn += 1
        own = [
            engine
            for engine in engines
            if (int(engine.name.rpartition("-")[2]) < self._embedding) == (info.kind == "embedding")
        ]
        return _least(own or engines, self._turn)
