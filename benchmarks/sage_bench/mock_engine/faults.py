"""Faults of single answers. Pure.

What befalls a whole engine (crash, slow-down, stall, cold start...) is in
:mod:`sage_bench.mock_engine.outages`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from sage_prefect.common.errors import BenchmarkError, UnknownNameError

FaultKind = Literal[
    "status", "kill", "truncate", "hang", "garbage", "garbage_event", "wrong_length"
]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of misbehaviour.

    ===============  ==========================================================================
    kind             what happens to the request
    ===============  ==========================================================================
    status           answered at once with ``status`` (and ``Retry-After: retry_after``)
    kill             after ``after_bytes`` of the body (0: before the head) the connection is reset
    truncate         the same, but it ends orderly: a chunked body without its last chunk
    hang             the same, but it stays open and nothing more comes
    garbage          answered with bytes that are no HTTP
    garbage_event    after ``after_bytes`` a piece that is no event (no JSON, without a stream)
    wrong_length     ``Content-Length`` (a stream's first chunk size) is wrong by ``extra`` bytes
    ===============  ==========================================================================

    Raises:
        BenchmarkError: a value makes no sense.
        UnknownNameError: no such kind.
    """

    kind: FaultKind
    status: int = 503
    retry_after: int | None = None
    after_bytes: int = 0
    extra: int = 10
    count: int | None = 1
    """So many requests; None: until the faults are cleared."""
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise UnknownNameError("fault", str(self.kind), get_args(FaultKind))
        whole = [self.status, self.after_bytes, self.extra]
        whole += [value for value in (self.retry_after, self.count) if value is not None]
        if not all(type(value) is int for value in whole):
            raise BenchmarkError(f"fault {self.kind}: {self} has a value that is no whole number.")
        if not 400 <= self.status <= 599 or self.after_bytes < 0 or self.extra == 0:
            raise BenchmarkError(
                f"fault {self.kind}: status {self.status} must be from 400 to 599, after_bytes "
                f"{self.after_bytes} not below 0, extra {self.extra} not 0."
            )
        if not (isinstance(self.probability, (int, float)) and 0 < self.probability <= 1):
            raise BenchmarkError(
                f"fault {self.kind}: probability {self.probability!r} is not in (0, 1]."
            )
        if self.count is not None and self.count < 1:
            raise BenchmarkError(f"fault {self.kind}: count {self.count} is below 1.")


class FaultPlan:
    """The faults that wait for requests; the first that applies is taken.

    Args:
        seed: of the chance that ``probability`` asks for.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._waiting: list[tuple[Fault, int | None]] = []

    def add(self, fault: Fault) -> None:
        """Order a fault."""
        self._waiting.append((fault, fault.count))

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()

    def waiting(self) -> list[tuple[Fault, int | None]]:
        """What is ordered, and for how many requests more."""
        return list(self._waiting)

    def take(self) -> Fault | None:
        """The fault of the next request, if any."""
        for place, (fault, left) in enumerate(self._waiting):
            if fault.probability < 1 and self._rng.random() >= fault.probability:
                continue
            if left == 1:
                del self._waiting[place]
            elif left is not None:
                self._waiting[place] = (fault, left - 1)
            return fault
        return None
