"""The closed loop: a fixed number of users, each waiting for its answer before it asks again.

For saturation ("how many tokens/s at 64 users?"). Its latencies are conditional on a load that
falls as the server slows: do not compare them with those of an open loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from sage_bench.load.client import Client
from sage_bench.load.driver import LoadDriver
from sage_bench.load.record import RequestRecord
from sage_bench.load.request import LoadRequest
from sage_bench.load.run import Bounds
from sage_prefect.common.errors import BenchmarkError


class ClosedLoop(LoadDriver):
    """Keeps ``concurrency`` requests in flight.

    Args:
        client: sends them; its epoch is set to the run's start.
        requests: what the users ask, in turn.
        concurrency: users.
        bounds: where to end.
        think_s: a user's pause between an answer and the next request.
        back_off_s: its pause after a failure, so that a dead server is not flooded.

    Raises:
        BenchmarkError: no users, or a negative pause.
    """

    kind = "closed"

    def __init__(
        self,
        client: Client,
        requests: Iterator[LoadRequest],
        concurrency: int,
        bounds: Bounds,
        *,
        think_s: float = 0.0,
        back_off_s: float = 0.1,
    ) -> None:
        if concurrency < 1 or think_s < 0 or back_off_s < 0:
            raise BenchmarkError(
                f"a closed loop of {concurrency} users who think {think_s} s and back off "
                f"{back_off_s} s; at least 1 user, no negative times."
            )
        super().__init__(client, bounds)
        self._requests = requests
        self._concurrency = concurrency
        self._think_s, self._back_off_s = think_s, back_off_s
        self._active = 0
        self._timer: asyncio.TimerHandle | None = None

    def _begin(self) -> None:
        if self._bounds.duration_s is not None:
            self._timer = self._loop.call_later(self._bounds.duration_s, self._finish)
        for _ in range(self._concurrency):
            self._active += 1
            self._ask()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ask(self) -> None:
        now = self._client.now()
        if self._all_sent.done() or not self._bounds.admits(self._sent, now):
            self._leave()
            return
        try:
            request = next(self._requests, None)
        except Exception as error:  # noqa: BLE001 - of the workload; raised in run()
            self._finish(error)
            return
        if request is None:
            self._leave()
            return
        index, self._sent = self._sent, self._sent + 1
        warmup = now < self._bounds.warmup_s
        self._client.start(index, request, now, self._answered, warmup=warmup)

    def _answered(self, record: RequestRecord) -> None:
        self._records.append(record)
        pause = self._think_s if record.ok else max(self._think_s, self._back_off_s)
        if self._all_sent.done():
            return
        if pause:
            self._loop.call_later(pause, self._ask)
        else:
            self._loop.call_soon(self._ask)

    def _leave(self) -> None:
        self._active -= 1
        if self._active <= 0:
            self._finish()
