"""The open loop: requests leave at their planned times, whatever the server does.

Users do not wait for each other's answers. A client that does slows down with the server and
hides its queue (Schroeder, Wierman, Harchol-Balter, Open Versus Closed, NSDI 2006).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from sage_bench.load.client import Client
from sage_bench.load.client_meter import ClientMeter
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import LoadRequest
from sage_bench.load.run import Bounds, LoadRun, wall_clock
from sage_prefect.common.errors import BenchmarkError

Arrival = tuple[float, LoadRequest]

# Event loops round timers to a millisecond: what is due so soon goes now.
_NOW_S = 0.0005
# So many requests leave in one turn of the event loop before answers are read again.
_BURST = 64


class OpenLoop:
    """Sends arrivals at their times.

    Args:
        client: sends them; its epoch is set to the run's start.
        arrivals: ``(seconds since start, request)``, times not falling. Drawn one ahead of time.
        bounds: where to end.
    """

    def __init__(self, client: Client, arrivals: Iterable[Arrival], bounds: Bounds) -> None:
        self._client = client
        self._arrivals = self._bounded(iter(arrivals), bounds)
        self._bounds = bounds
        self._records: list[RequestRecord] = []
        self._next: Arrival | None = None
        self._sent = 0
        self._interrupted = False
        self._all_sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> LoadRun:
        """Send everything and wait for the answers.

        Raises:
            BenchmarkError: the arrivals are not sorted, or there are none.
        """
        client, meter = self._client, ClientMeter()
        self._next = next(self._arrivals, None)
        if self._next is None:
            raise BenchmarkError(
                "a load without a single request.", hint="Raise its rate or duration."
            )
        began_at = wall_clock()
        client.begin()
        meter.start()
        self._pump()
        try:
            await self._all_sent
            scheduled_s = client.now()
            if not await client.drained(self._bounds.drain_s):
                client.cut_off(f"no end within {self._bounds.drain_s:g} s after the last request")
        finally:
            client_load = meter.stop()
        self._records.sort(key=lambda record: record.index)
        return LoadRun(
            loop="open",
            records=self._records,
            began_at=began_at,
            client=client_load,
            connections_opened=client.connections_opened,
            most_in_flight=client.most_in_flight,
            warmup_s=self._bounds.warmup_s,
            scheduled_s=scheduled_s,
            interrupted=self._interrupted,
        )

    def stop(self) -> None:
        """Send nothing more; :meth:`run` returns once the answers are in, or drained."""
        self._interrupted = True
        self._next = None
        if not self._all_sent.done():
            self._all_sent.set_result(None)

    def _pump(self) -> None:
        client = self._client
        loop = asyncio.get_running_loop()
        burst = 0
        try:
            while self._next is not None:
                at_s, request = self._next
                wait_s = at_s - client.now()
                if wait_s > _NOW_S:
                    loop.call_later(wait_s, self._pump)
                    return
                if burst == _BURST:
                    loop.call_soon(self._pump)
                    return
                burst += 1
                warmup = at_s < self._bounds.warmup_s
                client.start(self._sent, request, at_s, self._records.append, warmup=warmup)
                self._sent += 1
                self._next = next(self._arrivals, None)
        except Exception as error:  # noqa: BLE001 - of the workload; raised in run()
            self._next = None
            if not self._all_sent.done():
                self._all_sent.set_exception(error)
            return
        if not self._all_sent.done():
            self._all_sent.set_result(None)

    @staticmethod
    def _bounded(arrivals: Iterator[Arrival], bounds: Bounds) -> Iterator[Arrival]:
        before = 0.0
        for count, (at_s, request) in enumerate(arrivals):
            if not at_s >= before:
                raise BenchmarkError(
                    f"arrival {count} is at {at_s} s, after one at {before} s.",
                    hint="Arrival times must not fall and not be negative.",
                )
            if not bounds.admits(count, at_s):
                return
            before = at_s
            yield at_s, request
