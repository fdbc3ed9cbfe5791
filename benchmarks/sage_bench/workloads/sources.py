"""Sources of requests: open loop (times of their own) and closed loop (a new one per answer)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sage_bench.workloads.arrivals import RateSchedule, arrival_times
from sage_bench.workloads.client_request import ClientRequest, Traffic
from sage_bench.workloads.lengths import CHUNKS, QUERIES, LengthTable, LognormalLengths
from sage_bench.workloads.tenants import ZipfTenants
from sage_prefect.common.errors import SettingsError

_BLOCK = 1024
Maker = Callable[[float], ClientRequest]
"""Makes the request that arrives at a time."""


def chat_maker(
    traffic: Traffic,
    lengths: LengthTable,
    tenants: ZipfTenants,
    rng: np.random.Generator,
    *,
    scale: float = 1.0,
) -> Maker:
    """Independent prompts with lengths of a table, times ``scale``."""

    def draws() -> Iterator[tuple[str, int, int]]:
        while True:
            prompts, outputs = lengths.draw(rng, _BLOCK)
            names = tenants.draw(rng, _BLOCK)
            yield from zip(names, prompts.tolist(), outputs.tolist(), strict=True)

    drawn = draws()

    def make(at: float) -> ClientRequest:
        tenant, prompt, output = next(drawn)
        if scale != 1.0:
            prompt, output = max(1, round(prompt * scale)), max(1, round(output * scale))
        return ClientRequest(at, traffic, tenant, prompt, output)

    return make


@dataclass(frozen=True)
class EmbeddingCalls:
    """Shape of embedding traffic: queries of one input, chunks of documents in calls of many.

    Args:
        query_share: share of calls that are single queries.
        inputs_min, inputs_max: chunks per other call; Pareto with ``tail`` between the two.
        query, chunk: their lengths.

    Raises:
        SettingsError: a value is out of range.
    """

    query_share: float = 1.0
    inputs_min: int = 64
    inputs_max: int = 2048
    tail: float = 1.2
    query: LognormalLengths = QUERIES
    chunk: LognormalLengths = CHUNKS

    def __post_init__(self) -> None:
        if not 0 <= self.query_share <= 1 or not 1 <= self.inputs_min <= self.inputs_max:
            raise SettingsError(
                f"embedding calls: query_share={self.query_share} must be 0 to 1, "
                f"inputs {self.inputs_min} to {self.inputs_max} rising from 1."
            )
        if not self.tail > 0:
            raise SettingsError(f"embedding calls: tail={self.tail} must be above 0.")


def embedding_maker(
    traffic: Traffic, shape: EmbeddingCalls, tenants: ZipfTenants, rng: np.random.Generator
) -> Maker:
    """Embedding calls."""

    def make(at: float) -> ClientRequest:
        if rng.random() < shape.query_share:
            inputs = shape.query.draw(rng, 1)
        else:
            size = shape.inputs_min * (1 - rng.random()) ** (-1 / shape.tail)
            inputs = shape.chunk.draw(rng, int(min(size, shape.inputs_max)))
        tenant = tenants.draw(rng, 1)[0]
        return ClientRequest(
            at, traffic, tenant, int(inputs.sum()), 1, inputs=tuple(inputs.tolist())
        )

    return make


class OpenLoop:
    """Requests at times of their own, whatever becomes of those before them."""

    def __init__(self, requests: Iterator[ClientRequest]) -> None:
        self._requests = requests

    def next(self) -> ClientRequest | None:
        """The next request by time; None at the end."""
        return next(self._requests, None)


class ClosedLoop:
    """A backlog: ``outstanding`` requests at once, and a new one for each that ends.

    Args:
        make: makes a request.
        outstanding: how many, at least 1.
        start_s, until_s: when the backlog begins and ends.
        think_s: pause between an answer and the next request.
    """

    def __init__(
        self,
        make: Maker,
        outstanding: int,
        *,
        start_s: float = 0.0,
        until_s: float = math.inf,
        think_s: float = 0.0,
    ) -> None:
        if outstanding < 1 or think_s < 0:
            raise SettingsError(
                f"closed loop: outstanding={outstanding} must be at least 1, think_s={think_s} "
                "at least 0."
            )
        self._make = make
        self.outstanding = outstanding
        self.start_s, self.until_s, self.think_s = start_s, until_s, think_s

    def begin(self) -> list[ClientRequest]:
        """The first requests."""
        return [self._make(self.start_s) for _ in range(self.outstanding)]

    def follow(self, now: float) -> ClientRequest | None:
        """The request that takes the place of one that ended at ``now``; None after the end."""
        at = now + self.think_s
        return self._make(at) if at < self.until_s else None


def open_loop(
    make: Maker,
    schedule: RateSchedule,
    cv: float,
    rng: np.random.Generator,
    *,
    start_s: float = 0.0,
    until_s: float,
) -> OpenLoop:
    """Requests by a rate schedule between two times."""
    times = arrival_times(schedule, cv, rng, until_s - start_s)
    return OpenLoop(make(start_s + at) for at in times)
