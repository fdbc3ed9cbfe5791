"""The clients: they send requests, take answers or refusals, and note what became of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sage_bench.simulation.event_queue import EventQueue
from sage_bench.simulation.flight import NEVER, Flight
from sage_bench.simulation.records import Outcome, Records
from sage_bench.workloads.client_request import ClientRequest
from sage_bench.workloads.sources import ClosedLoop, OpenLoop

_UNKNOWN = math.nan
_LEAST_PAUSE_S = 1.0


class Clients:
    """All sources of requests.

    Args:
        sources: what asks.
        queue: virtual time.
        records: where ends are noted.
        gateways: how many there are; each gets every n-th request.
        arrive: hands a request to its gateway.
        hang_up: tells its gateway that a client has gone.
    """

    def __init__(
        self,
        sources: Sequence[OpenLoop | ClosedLoop],
        queue: EventQueue,
        records: Records,
        gateways: int,
        arrive: Callable[[Flight], None],
        hang_up: Callable[[Flight], None],
    ) -> None:
        self.flights: dict[str, Flight] = {}
        """Requests that have not ended."""
        self.open = 0
        """Of those, the ones of open loops."""
        self.asked = 0
        """Requests sent so far."""
        self._sources = sources
        self._queue = queue
        self._records = records
        self._gateways = gateways
        self._arrive = arrive
        self._hang_up = hang_up

    def begin(self) -> None:
        """Plan the first requests."""
        for source in self._sources:
            if isinstance(source, ClosedLoop):
                for request in source.begin():
                    self._queue.push(request.at, self._on_request, (None, request, source))
            else:
                self._next_of(source)

    def finish(self, flight: Flight, max_gap_s: float = 0.0, cached: int = 0) -> None:
        """The answer is complete now."""
        now, output = self._queue.now, flight.request.output
        if flight.first_at == NEVER:
            flight.first_at = now
        self._note(
            flight,
            Outcome.DONE,
            200,
            ended_at=now,
            tpot_s=(now - flight.first_at) / (output - 1) if output > 1 else _UNKNOWN,
            max_gap_s=max_gap_s,
            cached=cached,
        )

    def refuse(
        self, flight: Flight, outcome: Outcome, status: int, retry_after_s: float | None
    ) -> None:
        """The request ends in an error."""
        after = _UNKNOWN if retry_after_s is None else float(retry_after_s)
        self._note(flight, outcome, status, retry_after_s=after)

    def close(self) -> None:
        """Note everything that has not ended."""
        for flight in list(self.flights.values()):
            self._note(flight, Outcome.UNFINISHED, 0, follow=False)

    # -- inside ---------------------------------------------------------------------------

    def _next_of(self, source: OpenLoop) -> None:
        request = source.next()
        if request is not None:
            self._queue.push(request.at, self._on_request, (source, request, None))

    def _on_request(
        self, payload: tuple[OpenLoop | None, ClientRequest, ClosedLoop | None]
    ) -> None:
        source, request, closed = payload
        if source is not None:
            self._next_of(source)
            self.open += 1
        flight = Flight(str(self.asked), request, self.asked % self._gateways, closed)
        self.asked += 1
        self.flights[flight.key] = flight
        patience = request.traffic.patience_s
        if patience is not None:
            self._queue.push(self._queue.now + patience, self._on_patience, flight)
        self._arrive(flight)

    def _on_patience(self, flight: Flight) -> None:
        if not flight.ended and flight.first_at == NEVER:
            self._note(flight, Outcome.CANCELLED, 499)
            self._hang_up(flight)

    def _note(
        self,
        flight: Flight,
        outcome: Outcome,
        status: int,
        *,
        ended_at: float = _UNKNOWN,
        tpot_s: float = _UNKNOWN,
        max_gap_s: float = _UNKNOWN,
        retry_after_s: float = _UNKNOWN,
        cached: int = 0,
        follow: bool = True,
    ) -> None:
        flight.ended = True
        del self.flights[flight.key]
        at = flight.request.at
        self._records.add(
            flight.request,
            outcome,
            queued_s=flight.dispatched_at - at if flight.dispatched_at != NEVER else _UNKNOWN,
            ttft_s=flight.first_at - at if flight.first_at != NEVER else _UNKNOWN,
            e2e_s=ended_at - at,
            tpot_s=tpot_s,
            max_gap_s=max_gap_s,
            retry_after_s=retry_after_s,
            cached=cached,
            attempts=flight.attempts,
            status=status,
            engine=flight.node.index if flight.node is not None else -1,
        )
        if flight.source is None:
            self.open -= 1
        elif follow:
            self._follow(flight.source, outcome, retry_after_s)

    def _follow(self, source: ClosedLoop, outcome: Outcome, retry_after_s: float) -> None:
        back = self._queue.now
        if outcome is not Outcome.DONE:
            # A client that was refused comes back when it was told to.
            told = 0.0 if math.isnan(retry_after_s) else retry_after_s
            back += max(_LEAST_PAUSE_S, told)
        follower = source.follow(back)
        if follower is not None:
            self._queue.push(follower.at, self._on_request, (None, follower, source))
