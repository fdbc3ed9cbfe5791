"""A planned load from start to file: event loop, signals, garbage collector, records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import random
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from sage_bench.load.arrivals import Process, arrival_times
from sage_bench.load.client import Client, ClientOptions
from sage_bench.load.closed_loop import ClosedLoop
from sage_bench.load.open_loop import OpenLoop
from sage_bench.load.prompts import RequestShape
from sage_bench.load.record import write_records
from sage_bench.load.request import Kind
from sage_bench.load.run import Bounds, LoadRun
from sage_bench.load.summary import Objectives, summarise
from sage_bench.load.target import Target
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A synthetic load. Either ``rate_per_s`` (open loop) or ``concurrency`` (closed loop).

    Raises:
        BenchmarkError: both, neither, or no target.
    """

    targets: tuple[Target, ...]
    shape: RequestShape
    bounds: Bounds
    options: ClientOptions = field(default_factory=ClientOptions)
    objectives: Objectives = field(default_factory=Objectives)
    rate_per_s: float | None = None
    concurrency: int | None = None
    process: Process = "poisson"
    cv: float = 1.0
    think_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rate_per_s is None) == (self.concurrency is None):
            raise BenchmarkError(
                f"a load with rate {self.rate_per_s} and concurrency {self.concurrency}.",
                hint="Give --rate for an open loop, or --concurrency for a closed one.",
            )
        if not self.targets:
            raise BenchmarkError("a load without a target.", hint="Give --url.")
        if not (self.options.timeout_s > 0 and self.options.max_in_flight > 0):
            raise BenchmarkError(
                f"a time limit of {self.options.timeout_s} s and at most "
                f"{self.options.max_in_flight} requests in flight; both must be above 0."
            )


def checked_kind(name: str) -> Kind:
    """A request kind by name. Raises UnknownNameError."""
    if name not in get_args(Kind):
        raise UnknownNameError("kind of request", name, get_args(Kind))
    return cast(Kind, name)


def checked_process(name: str) -> Process:
    """An arrival process by name. Raises UnknownNameError."""
    if name not in get_args(Process):
        raise UnknownNameError("arrival process", name, get_args(Process))
    return cast(Process, name)


def execute(plan: LoadPlan, out: Path | None = None) -> dict[str, Any]:
    """Run a plan in an event loop of its own; its summary. Ctrl-C ends it early, with a summary.

    Args:
        out: Parquet file for the records.
    """
    with quiet_collector():
        run = run_in_loop(perform(plan))
    summary = summarise(run, plan.objectives)
    if out is not None:
        write_records(out, run.records, summary)
    return summary


async def perform(plan: LoadPlan) -> LoadRun:
    """Run a plan in the present event loop."""
    requests = plan.shape.requests(plan.seed)
    async with Client(plan.targets, plan.options) as client:
        driver: OpenLoop | ClosedLoop
        if plan.concurrency is not None:
            driver = ClosedLoop(
                client, requests, plan.concurrency, plan.bounds, think_s=plan.think_s
            )
        else:
            # A generator of its own: the same times whatever is asked.
            times = arrival_times(
                plan.process, plan.rate_per_s or 0.0, random.Random(plan.seed), cv=plan.cv
            )
            driver = OpenLoop(client, zip(times, requests, strict=False), plan.bounds)
        with _interrupt_calls(driver.stop):
            return await driver.run()


@contextlib.contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls ``stop`` inside the block, and what it did before after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before, loop = signal.getsignal(signal.SIGINT), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def run_in_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """``asyncio.run`` on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return cast(_T, loop.run_until_complete(main))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Fewer full collections: one over a big heap stops the loop for longer than the schedule
    error that a run may have."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
