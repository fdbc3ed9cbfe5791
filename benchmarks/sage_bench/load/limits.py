"""How much load one load generator, and one process of mock engines, can carry on this machine.

The rate is raised step by step until runs are invalid: until the client itself is late. A rate is
tried again before it counts as too high, for a neighbour's work can make any one run late.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sage_bench.cputime import CpuMeter
from sage_bench.load.prompts import RequestShape
from sage_bench.load.run import Bounds
from sage_bench.load.session import LoadPlan, execute
from sage_bench.load.target import Target
from sage_bench.server import Server
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

ENGINES = 8
SHAPES = {
    # A step of these engines takes 9 ms, so a stream has 110 events a second.
    "requests": RequestShape("mock", prompt_tokens=16, output_tokens=1, stream=False),
    "chunks": RequestShape("mock", prompt_tokens=16, output_tokens=64),
}
"""What the load is made of: short answers, or streams of 64 events."""
GROWTH = 1.25
TRIES = 3


@dataclass(frozen=True)
class Step:
    """One rate; rates are per second, CPU shares of one core."""

    rate: float
    completed: float
    chunks: float
    schedule_error_p99_ms: float
    """Of the last try; where there are too few requests for a p99, the maximum."""
    client_cpu_share: float
    client_us: float
    """CPU microseconds of the client per chunk (per request, where nothing streams)."""
    server_cpu_share: float
    server_us: float
    """The same of the mock engines' process."""
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rates_from(first: float) -> Iterator[float]:
    """Rates to try, each a quarter above the one before it.

    Raises:
        BenchmarkError: the first is not above 0.
    """
    if not 0 < first < 1e6:
        raise BenchmarkError(f"a first rate of {first} requests/s is not above 0.")
    while True:
        yield first
        first *= GROWTH


def find_limit(
    what: str, first_rate: float, seconds: float, log: Path, *, most_steps: int = 24
) -> list[Step]:
    """Raise the rate until a run is invalid; the steps, of which only the last may be invalid.

    Args:
        what: ``requests`` or ``chunks``.
        first_rate: requests per second of the first step.
        seconds: length of a step.
        log: file for the mock engines' output.

    Raises:
        UnknownNameError: there is no such load.
        BenchmarkError: the mock engines do not start, or a rate makes no sense.
    """
    if what not in SHAPES:
        raise UnknownNameError("load", what, SHAPES)
    command = [sys.executable, "-m", "sage_prefect.cli.main", "bench", "mock-engine"]
    command += ["--count", str(ENGINES), "--control-port", "{port}"]
    with Server("mock engines", command, log=log, ready="/engines") as server:
        targets = _targets(server)
        steps: list[Step] = []
        for rate in rates_from(first_rate):
            for _ in range(TRIES):
                step = _step(SHAPES[what], rate, seconds, targets, server.pid)
                if not step.problems:
                    break
            steps.append(step)
            if steps[-1].problems or len(steps) == most_steps:
                return steps
    raise RuntimeError("rates never end. This is a bug.")


def last_valid(steps: Sequence[Step]) -> Step | None:
    """The highest rate at which the run was valid."""
    return next((step for step in reversed(steps) if not step.problems), None)


def _targets(server: Server) -> tuple[Target, ...]:
    import httpx

    states = httpx.get(server.url + "/engines", timeout=10.0, trust_env=False).json()
    return tuple(Target.parse(state["url"]) for state in states)


def _step(
    shape: RequestShape,
    rate: float,
    seconds: float,
    targets: tuple[Target, ...],
    pid: int,
) -> Step:
    plan = LoadPlan(targets, shape, Bounds(seconds, drain_s=30.0, warmup_s=1.0), rate_per_s=rate)
    with CpuMeter([pid], poll_s=None) as meter:
        summary = execute(plan)
    late = summary["schedule_error_ms"]
    client, offered = summary["client"], summary["offered"] + summary["warmup_requests"]
    units = offered * (shape.output_tokens if shape.stream else 1)
    return Step(
        rate=rate,
        completed=summary["completed_per_s"],
        chunks=summary["chunks"] / summary["seconds"],
        schedule_error_p99_ms=late.get("p99") or late["max"] or 0.0,
        client_cpu_share=client["cpu_share"],
        client_us=1e6 * client["cpu_s"] / max(1, units),
        server_cpu_share=meter.cpu_s / client["wall_s"],
        server_us=1e6 * meter.cpu_s / max(1, units),
        problems=tuple(summary["problems"]),
    )
