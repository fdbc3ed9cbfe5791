"""The open loop: requests leave at their planned times, whatever the server does.

Users do not wait for each other's answers. A client that does slows down with the server and
hides its queue (Schroeder, Wierman, Harchol-Balter, Open Versus Closed, NSDI 2006).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sage_bench.load.client import Client
from sage_bench.load.driver import LoadDriver
from sage_bench.load.request import LoadRequest
from sage_bench.load.run import Bounds
from sage_prefect.common.errors import BenchmarkError

Arrival = tuple[float, LoadRequest]

# Event loops round timers to a millisecond: what is due so soon goes now.
_NOW_S = 0.0005
# So many requests leave in one turn of the event loop before answers are read again.
_BURST = 64


class OpenLoop(LoadDriver):
    """Sends arrivals at their times.

    Args:
        client: sends them; its epoch is set to the run's start.
        arrivals: ``(seconds since start, request)``, times not falling. Drawn one ahead of time.
        bounds: where to end.
    """

    kind = "open"

    def __init__(self, client: Client, arrivals: Iterable[Arrival], bounds: Bounds) -> None:
        super().__init__(client, bounds)
        self._arrivals = self._bounded(iter(arrivals), bounds)
        self._next: Arrival | None = None

    def stop(self) -> None:
        """Send nothing more; :meth:`run` returns once the answers are in, or drained."""
        self._next = None
        super().stop()

    def _prepare(self) -> None:
        self._next = next(self._arrivals, None)
        if self._next is None:
            raise BenchmarkError(
                "a load without a single request.", hint="Raise its rate or duration."
            )

    def _begin(self) -> None:
        self._pump()

    def _pump(self) -> None:
        client = self._client
        burst = 0
        try:
            while self._next is not None:
                at_s, request = self._next
                wait_s = at_s - client.now()
                if wait_s > _NOW_S:
                    self._loop.call_later(wait_s, self._pump)
                    return
                if burst == _BURST:
                    self._loop.call_soon(self._pump)
                    return
                burst += 1
                warmup = at_s < self._bounds.warmup_s
                client.start(self._sent, request, at_s, self._records.append, warmup=warmup)
                self._sent += 1
                self._next = next(self._arrivals, None)
        except Exception as error:  # noqa: BLE001 - of the workload; raised in run()
            self._next = None
            self._finish(error)
            return
        self._finish()

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
