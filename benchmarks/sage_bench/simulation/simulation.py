"""The event loop: sources, gateways and engines in virtual time.

A gateway is a controller (the production manager or a baseline) that is told of everything after
the network's delay and pays its own cost per event, one after another. Nothing here decides
anything: what to dispatch, refuse or abort comes from the controller's actions.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sage_bench.simulation.cluster import Node, NodeSpec, make_nodes
from sage_bench.simulation.controller import Controller, ControllerFactory
from sage_bench.simulation.embedding_engine import EmbeddingCall, EmbeddingEngine
from sage_bench.simulation.faults import Fault
from sage_bench.simulation.flight import Flight
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.records import Outcome, Records
from sage_bench.simulation.sequence import Emission
from sage_bench.simulation.sequence import Sequence as LlmSequence
from sage_bench.workloads.client_request import ClientRequest
from sage_bench.workloads.sources import ClosedLoop, OpenLoop
from sage_prefect.control_plane.events import (
    Abort,
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineReport,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Reject,
    RequestInfo,
    SetTimer,
    Timer,
)

_NAN = math.nan
"""An unknown time."""
_SOURCE, _TOLD, _SUBMIT, _WAKE, _TIMER, _FAULT, _PATIENCE, _ABORT, _REPORT = range(9)


@dataclass(frozen=True)
class Surroundings:
    """What is around engines and sources; seconds.

    Args:
        network_s: one way between gateway and engine.
        gateway_s: the gateway's own cost per event; events queue behind each other.
        gateways: replicas; each gets every n-th request and its share of every window.
        detection_s: until a crash or a recovery is noticed.
        staleness_s: how old an engine's own gauges are when they are told; 0: never told.
        progress_s: how often a gateway hears of each stream in work; 0: never.
        give_up_s: an attempt without a first token fails after this.
        until_s: end of the arrivals.
        drain_s: how long after that open-loop requests may still finish.
    """

    network_s: float = 0.0005
    gateway_s: float = 0.0
    gateways: int = 1
    detection_s: float = 1.0
    staleness_s: float = 0.0
    progress_s: float = 0.0
    give_up_s: float = math.inf
    until_s: float = 600.0
    drain_s: float = 60.0


Journal = Callable[[int, Event, float, Sequence[Any]], None]
"""Is told of each event of a controller (number, event, time, actions)."""


class Simulation:
    """One run.

    Args:
        nodes: the engines.
        sources: what asks.
        controllers: makes a gateway's controller.
        surroundings: network, gateways, times.
        faults: what goes wrong when.
        info: what a gateway is told of a request (id, request, now).
        weights: of tenants; those not named have 1.
        journal: called with every event that a controller takes.
    """

    def __init__(
        self,
        nodes: list[NodeSpec],
        sources: Sequence[OpenLoop | ClosedLoop],
        controllers: ControllerFactory,
        surroundings: Surroundings,
        faults: Sequence[Fault] = (),
        *,
        info: Callable[[str, ClientRequest, float], RequestInfo],
        weights: Mapping[str, float] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.nodes = make_nodes(nodes)
        self.around = surroundings
        self.records = Records([node.name for node in self.nodes])
        self.now = 0.0
        self.events = 0
        """Events taken from the heap: the measure of a run's size."""
        self.wasted_tokens = 0
        """Tokens computed for attempts that were aborted or failed."""
        self.controllers: list[Controller] = [controllers() for _ in range(surroundings.gateways)]
        self.weights = dict(weights or {})
        self._info = info
        self._journal = journal
        self._by_name = {node.name: node for node in self.nodes}
        self._sources = sources
        self._heap: list[tuple[float, int, int, Any]] = []
        self._serial = 0
        self._requests = 0
        self._flights: dict[str, Flight] = {}
        self._open = 0
        self._gateway_free = [0.0] * surroundings.gateways
        self._timer_at = [math.inf] * surroundings.gateways
        for fault in faults:
            for node in self._matching(fault):
                self._push(fault.at_s, _FAULT, (fault, node))

    # -- running --------------------------------------------------------------------------

    def run(self) -> Records:
        """Run to the end and return what became of the requests."""
        self._begin()
        heap, pop = self._heap, heapq.heappop
        end = self.around.until_s + self.around.drain_s
        handlers = (
            self._on_source,
            self._on_told,
            self._on_submit,
            self._on_wake,
            self._on_timer,
            self._on_fault,
            self._on_patience,
            self._on_abort,
            self._on_report,
        )
        count = 0
        while heap:
            at, _, kind, payload = pop(heap)
            if at > end or (at > self.around.until_s and not self._open):
                break
            self.now = at
            count += 1
            handlers[kind](payload)
        self.events += count
        for flight in list(self._flights.values()):
            self._record(flight, Outcome.UNFINISHED, 0)
        return self.records

    def _begin(self) -> None:
        share = self.around.gateways
        for gateway in range(share):
            for node in self.nodes:
                spec = node.spec.spec
                if share > 1:
                    window = max(1, spec.max_concurrency // share)
                    spec = type(spec)(
                        **{
                            name: getattr(spec, name) if name != "max_concurrency" else window
                            for name in spec.__slots__
                        }
                    )
                self._tell(gateway, EngineAdded(spec))
                if not node.up:
                    self._tell(gateway, EngineReport(node.name, EngineState.SUSPECT, "not up"))
        for source in self._sources:
            if isinstance(source, ClosedLoop):
                for request in source.begin():
                    self._push(request.at, _SOURCE, (None, request, source))
            else:
                self._next_of(source)
        if self.around.staleness_s > 0:
            self._push(self.around.staleness_s, _REPORT, None)

    def _push(self, at: float, kind: int, payload: Any) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, kind, payload))

    def _matching(self, fault: Fault) -> list[Node]:
        return [node for node in self.nodes if fault.hits(node.name)]

    # -- sources --------------------------------------------------------------------------

    def _next_of(self, source: OpenLoop) -> None:
        request = source.next()
        if request is not None:
            self._push(request.at, _SOURCE, (source, request, None))

    def _on_source(self, payload: tuple[OpenLoop | None, ClientRequest, ClosedLoop | None]) -> None:
        source, request, closed = payload
        if source is not None:
            self._next_of(source)
            self._open += 1
        number = self._requests
        self._requests += 1
        flight = Flight(str(number), request, number % self.around.gateways, closed)
        self._flights[flight.request_id] = flight
        if request.traffic.patience_s is not None:
            self._push(self.now + request.traffic.patience_s, _PATIENCE, flight)
        self._tell(flight.gateway, Arrival(self._info(flight.request_id, request, self.now)))

    def _on_patience(self, flight: Flight) -> None:
        if flight.ended or flight.first_at >= 0:
            return
        self._record(flight, Outcome.CANCELLED, 499)
        self._tell(flight.gateway, Cancel(flight.request_id))

    # -- gateways -------------------------------------------------------------------------

    def _tell(self, gateway: int, event: Event) -> None:
        """Hand an event to a gateway; it handles it when it has handled those before it."""
        cost = self.around.gateway_s
        if cost:
            at = max(self.now, self._gateway_free[gateway]) + cost
            self._gateway_free[gateway] = at
            self._push(at, _TOLD, (gateway, event))
        else:
            self._handle(gateway, event)

    def _on_told(self, payload: tuple[int, Event]) -> None:
        self._handle(*payload)

    def _handle(self, gateway: int, event: Event) -> None:
        actions = self.controllers[gateway].handle(event, self.now)
        if self._journal is not None:
            self._journal(gateway, event, self.now, actions)
        for action in actions:
            if type(action) is Dispatch:
                self._dispatch(action)
            elif type(action) is Reject:
                self._reject(action)
            elif type(action) is SetTimer:
                self._timer_at[gateway] = at = max(action.at, self.now)
                self._push(at, _TIMER, gateway)
            elif type(action) is Abort:
                self._push(self.now + self.around.network_s, _ABORT, action)

    def _on_timer(self, gateway: int) -> None:
        if self._timer_at[gateway] == self.now:
            self._timer_at[gateway] = math.inf
            self._tell(gateway, Timer())

    def _dispatch(self, action: Dispatch) -> None:
        flight = self._flights.get(action.request_id)
        if flight is None:
            return
        flight.attempts = action.attempt
        flight.node = self._by_name[action.engine]
        flight.dispatched_at = self.now
        self._push(self.now + self.around.network_s, _SUBMIT, (flight, action.attempt))

    def _reject(self, action: Reject) -> None:
        flight = self._flights.get(action.request_id)
        if flight is None:
            return
        # The manager answers a failed attempt with a Reject of status 502/504.
        failed = action.engine is not None
        self._record(
            flight,
            Outcome.FAILED if failed else Outcome.REJECTED,
            action.status,
            _NAN if action.retry_after is None else float(action.retry_after),
        )

    # -- engines --------------------------------------------------------------------------

    def _on_submit(self, payload: tuple[Flight, int]) -> None:
        flight, attempt = payload
        node = flight.node
        if flight.ended or node is None or flight.attempts != attempt:
            return
        if not node.up:
            self._fail(flight, FailureCause.CONNECT, "connection refused")
            return
        engine, request = node.engine, flight.request
        limit = node.spec.max_waiting
        if node.refusing or (limit is not None and engine.waiting >= limit):
            self._fail(flight, FailureCause.STATUS, "503 from the engine")
            return
        if isinstance(engine, LlmEngine):
            priority = int(request.traffic.band) if engine.spec.scheduling == "priority" else 0
            sequence = LlmSequence(
                flight, request.prompt, request.output, priority, request.chain, request.chain_after
            )
            flight.work = sequence
            engine.submit(sequence, self.now)
        else:
            call = EmbeddingCall(flight, request.inputs or (request.prompt,))
            flight.work = call
            engine.submit(call, self.now)
        node.inside[flight.request_id] = flight
        self._arm(node)

    def _arm(self, node: Node) -> None:
        at = node.engine.next_at
        if at < node.armed_at:
            node.armed_at = at
            self._push(at, _WAKE, (node, at))

    def _on_wake(self, payload: tuple[Node, float]) -> None:
        node, at = payload
        if node.armed_at != at:
            return
        node.armed_at = math.inf
        engine = node.engine
        if engine.next_at <= self.now:
            if isinstance(engine, LlmEngine):
                for emission in engine.advance(self.now):
                    self._emitted(node, emission)
            else:
                for answer in engine.advance(self.now):
                    self._answered(node, answer.call)
            if node.neighbour is not None:
                node.neighbour.apply_stretch(self.now)
                self._rearm(node.neighbour)
        self._arm(node)

    def _rearm(self, node: Node) -> None:
        if node.engine.next_at != node.armed_at:
            node.armed_at = math.inf
            self._arm(node)

    def _emitted(self, node: Node, emission: Emission) -> None:
        flight = emission.sequence.key
        if not isinstance(flight, Flight) or flight.work is not emission.sequence:
            return  # an attempt that the gateway has given up
        arrives = emission.at + self.around.network_s
        if not emission.finished:
            flight.first_at = arrives
            if flight.request.traffic.stream:
                self._deliver(arrives, flight.gateway, FirstToken(flight.request_id))
            return
        sequence = emission.sequence
        node.inside.pop(flight.request_id, None)
        self._finish(flight, node, arrives, sequence.max_gap_s, sequence.cached)
        self._deliver(
            arrives,
            flight.gateway,
            Done(flight.request_id, sequence.prompt, sequence.output, sequence.cached),
        )

    def _answered(self, node: Node, call: EmbeddingCall) -> None:
        flight = call.key
        if not isinstance(flight, Flight) or flight.work is not call:
            return
        arrives = self.now + self.around.network_s
        flight.first_at = arrives
        node.inside.pop(flight.request_id, None)
        self._finish(flight, node, arrives, 0.0, 0)
        self._deliver(arrives, flight.gateway, Done(flight.request_id, call.tokens, 0, 0))

    def _deliver(self, at: float, gateway: int, event: Event) -> None:
        if at <= self.now:
            self._tell(gateway, event)
        elif self.around.gateway_s:
            free = max(at, self._gateway_free[gateway]) + self.around.gateway_s
            self._gateway_free[gateway] = free
            self._push(free, _TOLD, (gateway, event))
        else:
            self._push(at, _TOLD, (gateway, event))

    # -- ends -----------------------------------------------------------------------------

    def _finish(self, flight: Flight, node: Node, at: float, max_gap_s: float, cached: int) -> None:
        request = flight.request
        tpot = (at - flight.first_at) / (request.output - 1) if request.output > 1 else _NAN
        self._record(
            flight,
            Outcome.DONE,
            200,
            ended_at=at,
            tpot_s=tpot,
            max_gap_s=max_gap_s,
            cached=cached,
        )

    def _record(
        self,
        flight: Flight,
        outcome: Outcome,
        status: int,
        retry_after_s: float = _NAN,
        *,
        ended_at: float = _NAN,
        tpot_s: float = _NAN,
        max_gap_s: float = _NAN,
        cached: int = 0,
    ) -> None:
        if flight.ended:
            return
        flight.ended = True
        del self._flights[flight.request_id]
        at = flight.request.at
        self.records.add(
            flight.request,
            outcome,
            queued_s=flight.dispatched_at - at if flight.dispatched_at >= 0 else _NAN,
            ttft_s=flight.first_at - at if flight.first_at >= 0 else _NAN,
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
            self._open -= 1
        else:
            # A refused client comes back when it was told to, at the soonest after a second.
            pause = (
                0.0
                if outcome is Outcome.DONE
                else max(1.0, retry_after_s if retry_after_s == retry_after_s else 0.0)
            )
            follower = flight.source.follow(
                max(self.now, ended_at if ended_at == ended_at else 0.0) + pause
            )
            if follower is not None:
                self._push(follower.at, _SOURCE, (None, follower, flight.source))

    def _fail(self, flight: Flight, cause: FailureCause, message: str) -> None:
        """The attempt in flight has failed; the gateway hears of it after the network's delay."""
        node = flight.node
        if node is None or flight.ended:
            return
        node.inside.pop(flight.request_id, None)
        self._waste(flight)
        retryable = flight.first_at < 0 or not flight.request.traffic.stream
        self._deliver(
            self.now + self.around.network_s,
            flight.gateway,
            Failed(flight.request_id, node.name, cause, retryable, message),
        )

    def _waste(self, flight: Flight) -> None:
        work = flight.work
        if isinstance(work, LlmSequence):
            self.wasted_tokens += work.prefill_length - work.prefill_left + work.generated
        elif isinstance(work, EmbeddingCall):
            self.wasted_tokens += work.tokens
        flight.work = None

    def _on_abort(self, action: Abort) -> None:
        node = self._by_name[action.engine]
        flight = node.inside.pop(action.request_id, None)
        if not isinstance(flight, Flight):
            return
        work, engine = flight.work, node.engine
        if isinstance(work, LlmSequence) and isinstance(engine, LlmEngine):
            engine.abort(work, self.now)
        elif isinstance(work, EmbeddingCall) and isinstance(engine, EmbeddingEngine):
            engine.abort(work)
        self._waste(flight)
        self._rearm(node)

    # -- faults and gauges ----------------------------------------------------------------

    def _on_fault(self, payload: tuple[Fault, Node]) -> None:
        fault, node = payload
        follow_up = fault.apply(node, self.now)
        if fault.loses_work:
            for item in list(node.inside.values()):
                if isinstance(item, Flight):
                    self._fail(item, FailureCause.RESET, "connection reset")
            node.inside.clear()
        self._rearm(node)
        if fault.state is not None:
            for gateway in range(self.around.gateways):
                self._deliver(
                    self.now + self.around.detection_s,
                    gateway,
                    EngineReport(node.name, fault.state, fault.kind),
                )
        if follow_up is not None:
            self._push(follow_up.at_s, _FAULT, (follow_up, node))

    def _on_report(self, _: None) -> None:
        self._push(self.now + self.around.staleness_s, _REPORT, None)
