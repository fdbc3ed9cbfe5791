"""What open and closed loops have in common: a run from its first request to its last answer."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from sage_bench.load.client import Client
from sage_bench.load.client_meter import ClientMeter
from sage_bench.load.record import RequestRecord
from sage_bench.load.run import Bounds, LoadRun, LoopKind, wall_clock


class LoadDriver(ABC):
    """Sends requests until a bound is met. Belongs to one event loop; runs once.

    Args:
        client: sends them; its epoch is set to the run's start.
        bounds: where to end.
    """

    kind: LoopKind

    def __init__(self, client: Client, bounds: Bounds) -> None:
        self._client = client
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._records: list[RequestRecord] = []
        self._sent = 0
        self._interrupted = False
        self._all_sent: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> LoadRun:
        """Send everything and wait for the answers; those that take too long are cut off.

        Raises:
            BenchmarkError: the workload makes no sense (an open loop's arrivals).
        """
        client, drain_s, meter = self._client, self._bounds.drain_s, ClientMeter()
        self._prepare()
        began_at = wall_clock()
        client.begin()
        meter.start()
        try:
            self._begin()
            await self._all_sent
            scheduled_s = client.now()
            if not await client.drained(drain_s):
                client.cut_off(f"no end within {drain_s:g} s after the last request")
        finally:
            self._end()
            client_load = meter.stop()
        self._records.sort(key=lambda record: record.index)
        return LoadRun(
            loop=self.kind,
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
        self._finish()

    def _prepare(self) -> None:  # noqa: B027 - nothing to do is fine
        """Before the clock runs."""

    @abstractmethod
    def _begin(self) -> None:
        """Send the first request, and see to it that the others follow."""

    def _end(self) -> None:  # noqa: B027 - nothing to do is fine
        """Whatever came of the run."""

    def _finish(self, error: Exception | None = None) -> None:
        """Nothing more is to be sent; an ``error`` of the workload is raised in :meth:`run`."""
        if self._all_sent.done():
            return
        if error is None:
            self._all_sent.set_result(None)
        else:
            self._all_sent.set_exception(error)
