"""What became of every request: columns, one row per request, 92 bytes each."""

from __future__ import annotations

import enum
from array import array

import numpy as np
from numpy.typing import NDArray

from sage_bench.workloads.client_request import ClientRequest, Traffic

Column = NDArray[np.float64]


class Outcome(enum.IntEnum):
    """How a request ended."""

    UNFINISHED = 0
    DONE = 1
    REJECTED = 2
    FAILED = 3
    CANCELLED = 4


_FLOATS = ("at", "queued_s", "ttft_s", "e2e_s", "tpot_s", "max_gap_s", "retry_after_s")
_COUNTS = (
    "prompt",
    "output",
    "cached",
    "attempts",
    "status",
    "outcome",
    "traffic",
    "tenant",
    "engine",
)


class Records:
    """Columns that grow. Times are seconds as the client sees them; unknown ones are NaN.

    ``engine``, ``traffic`` and ``tenant`` are numbers into :attr:`engines`, :attr:`traffics` and
    :attr:`tenants`; -1: none.
    """

    def __init__(self, engines: list[str]) -> None:
        self.engines = engines
        self.traffics: list[Traffic] = []
        self.tenants: list[str] = []
        self._traffic_ids: dict[str, int] = {}
        self._tenant_ids: dict[str, int] = {}
        self._floats = {name: array("d") for name in _FLOATS}
        self._counts = {name: array("i") for name in _COUNTS}
        self._frozen: dict[str, Column] | None = None

    def __len__(self) -> int:
        return len(self._floats["at"])

    def add(
        self,
        request: ClientRequest,
        outcome: Outcome,
        *,
        queued_s: float,
        ttft_s: float,
        e2e_s: float,
        tpot_s: float,
        max_gap_s: float,
        retry_after_s: float,
        cached: int,
        attempts: int,
        status: int,
        engine: int,
    ) -> None:
        """Append one request."""
        traffic = self._traffic_ids.get(request.traffic.name)
        if traffic is None:
            traffic = self._traffic_ids[request.traffic.name] = len(self.traffics)
            self.traffics.append(request.traffic)
        tenant = self._tenant_ids.get(request.tenant)
        if tenant is None:
            tenant = self._tenant_ids[request.tenant] = len(self.tenants)
            self.tenants.append(request.tenant)
        for name, value in zip(
            _FLOATS,
            (request.at, queued_s, ttft_s, e2e_s, tpot_s, max_gap_s, retry_after_s),
            strict=True,
        ):
            self._floats[name].append(value)
        for name, count in zip(
            _COUNTS,
            (
                request.prompt,
                request.output,
                cached,
                attempts,
                status,
                int(outcome),
                traffic,
                tenant,
                engine,
            ),
            strict=True,
        ):
            self._counts[name].append(count)
        self._frozen = None

    def column(self, name: str) -> Column:
        """A column as numbers."""
        source = self._floats.get(name) or self._counts.get(name)
        if source is None:
            return np.zeros(0)
        return np.asarray(source, dtype=np.float64)

    def columns(self) -> dict[str, Column]:
        """All columns."""
        if self._frozen is None:
            self._frozen = {name: self.column(name) for name in (*_FLOATS, *_COUNTS)}
        return self._frozen
