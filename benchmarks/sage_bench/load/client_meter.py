"""How busy the load generator itself was: one that is short of CPU measures itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sage_bench.machine import CpuTicks, load_between

PROBE_S = 0.02


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """The client's own load during a run."""

    wall_s: float
    cpu_s: float
    cpu_share: float
    """Of one core: its event loop has no more than that."""
    loop_lag_p99_ms: float | None
    """How late the event loop ran a timer; what came in meanwhile is stamped late by as much."""
    loop_lag_max_ms: float | None
    machine_others_percent: float
    """Other processes' share of all cores, the measured servers included."""
    machine_steal_percent: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class ClientMeter:
    """Meters this process between :meth:`start` and :meth:`stop`, inside a running event loop."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._began = 0.0
        self._cpu_before = 0.0
        self._ticks = CpuTicks.now()

    def start(self) -> None:
        """Begin."""
        self._ticks = CpuTicks.now()
        self._began, self._cpu_before = time.monotonic(), time.process_time()
        self._arm()

    def stop(self) -> ClientLoad:
        """End; what was seen."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wall_s = max(time.monotonic() - self._began, 1e-9)
        cpu_s = time.process_time() - self._cpu_before
        used = load_between(self._ticks, CpuTicks.now(), cpu_s)
        lags = np.array(self._lags) * 1e3
        return ClientLoad(
            wall_s=wall_s,
            cpu_s=cpu_s,
            cpu_share=cpu_s / wall_s,
            loop_lag_p99_ms=float(np.quantile(lags, 0.99)) if len(lags) else None,
            loop_lag_max_ms=float(lags.max()) if len(lags) else None,
            machine_others_percent=used["others_percent"],
            machine_steal_percent=used["steal_percent"],
        )

    def _arm(self) -> None:
        self._due = time.monotonic() + PROBE_S
        self._timer = asyncio.get_running_loop().call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        self._lags.append(max(0.0, time.monotonic() - self._due))
        self._arm()
