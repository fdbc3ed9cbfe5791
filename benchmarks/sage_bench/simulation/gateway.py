"""A gateway: a controller behind a network, paying a cost of its own for every event.

It decides nothing: what to dispatch, refuse or abort comes from the controller's actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sage_bench.simulation.clients import Clients
from sage_bench.simulation.cluster import Node
from sage_bench.simulation.controller import Controller
from sage_bench.simulation.embedding_engine import EmbeddingCall
from sage_bench.simulation.event_queue import EventQueue
from sage_bench.simulation.fleet import Fleet
from sage_bench.simulation.flight import NEVER, Batch, Flight, Job
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.records import Outcome
from sage_bench.simulation.request_facts import Facts
from sage_bench.simulation.sequence import Sequence as LlmSequence
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    Arrival,
    BatchDone,
    BatchFailed,
    Cancel,
    Dispatch,
    DispatchBatch,
    Done,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Progress,
    Reject,
    SetTimer,
    Timer,
)

Journal = Callable[[int, Event, float, Sequence[Action]], None]
"""Is told of each event of a controller (gateway's number, event, time, actions)."""


@dataclass(frozen=True)
class Surroundings:
    """What is around engines and clients; seconds.

    Args:
        network_s: one way between gateway and engine.
        gateway_s: a gateway's own cost per event; events queue behind each other.
        gateways: replicas; each gets every n-th request and its share of every window.
        detection_s: until a crash or a recovery is noticed.
        staleness_s: how old an engine's gauges are when they are told, and how often; 0: never.
        progress_s: how often a gateway hears of each stream in work, as the live one does: with
            the first token after so long, except the answer's last; 0: never.
        attempt_timeout_s: an attempt without a first token fails after this.
        until_s: end of the arrivals.
        drain_s: how long after that open-loop requests may still finish.
    """

    network_s: float = 0.0005
    gateway_s: float = 0.0
    gateways: int = 1
    detection_s: float = 1.0
    staleness_s: float = 0.0
    progress_s: float = 0.0
    attempt_timeout_s: float = math.inf
    until_s: float = 600.0
    drain_s: float = 60.0


class Gateway:
    """One replica."""

    def __init__(
        self,
        number: int,
        controller: Controller,
        queue: EventQueue,
        fleet: Fleet,
        clients: Clients,
        facts: Facts,
        around: Surroundings,
        journal: Journal | None,
    ) -> None:
        self.controller = controller
        self._number = number
        self._queue = queue
        self._fleet = fleet
        self._clients = clients
        self._facts = facts
        self._network_s = around.network_s
        self._timeout_s = around.attempt_timeout_s
        self._cost_s = around.gateway_s
        self._progress_s = around.progress_s
        self._journal = journal
        self._batches: dict[int, Batch] = {}
        self._free_at = 0.0
        self._timer_at = math.inf

    def tell(self, event: Event) -> None:
        """An event reaches the gateway now; it takes it once it has taken those before it."""
        if self._cost_s:
            self._free_at = max(self._queue.now, self._free_at) + self._cost_s
            self._queue.push(self._free_at, self._take, event)
        else:
            self._take(event)

    def arrive(self, flight: Flight) -> None:
        """A client's request."""
        info = self._facts.describe(flight.key, flight.request, self._queue.now)
        self.tell(Arrival(info))

    def hang_up(self, flight: Flight) -> None:
        """A client has gone."""
        self.tell(Cancel(flight.key))

    # -- decisions ------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        now = self._queue.now
        actions = self.controller.handle(event, now)
        if self._journal is not None:
            self._journal(self._number, event, now, actions)
        for action in actions:
            if isinstance(action, Dispatch):
                self._dispatch(action)
            elif isinstance(action, SetTimer):
                self._timer_at = max(action.at, now)
                self._queue.push(self._timer_at, self._on_timer, self._timer_at)
            elif isinstance(action, Reject):
                self._reject(action)
            elif isinstance(action, DispatchBatch):
                self._dispatch_batch(action)
            elif isinstance(action, AbortBatch):
                self._abort_batch(action)
            else:
                self._abort(action)

    def _on_timer(self, at: float) -> None:
        if self._timer_at == at:
            self._timer_at = math.inf
            self.tell(Timer())

    def _dispatch(self, action: Dispatch) -> None:
        flight = self._clients.flights.get(action.request_id)
        if flight is None:
            return  # its client has gone; the Cancel is on its way
        flight.turn += 1
        flight.attempts = action.attempt
        flight.node = self._fleet.node(action.engine)
        flight.dispatched_at = self._queue.now
        flight.first_at = NEVER
        self._after_network(self._on_submit, (flight, flight.turn))
        if self._timeout_s < math.inf:
            self._queue.push(
                self._queue.now + self._timeout_s, self._on_timeout, (flight, flight.turn)
            )

    def _on_submit(self, payload: tuple[Flight, int]) -> None:
        flight, turn = payload
        if flight.turn == turn and not flight.ended and flight.node is not None:
            self._fleet.submit(flight, flight.node)

    def _on_timeout(self, payload: tuple[Flight, int]) -> None:
        flight, turn = payload
        node = flight.node
        if flight.turn != turn or flight.ended or flight.first_at != NEVER or node is None:
            return
        self._close(flight.key, node)
        message = f"no first token within {self._timeout_s:g} s"
        self.tell(Failed(flight.key, node.name, FailureCause.TIMEOUT, True, message))

    def _dispatch_batch(self, action: DispatchBatch) -> None:
        node = self._fleet.node(action.engine)
        lengths: list[int] = []
        answers: list[Flight] = []
        for part in action.parts:
            owners = [(part.request_id, part.index), *part.copies]
            flights = [(self._clients.flights.get(name), index) for name, index in owners]
            alive = [(flight, index) for flight, index in flights if flight is not None]
            answers += [flight for flight, _ in alive]
            if alive:
                flight, index = alive[0]
                lengths.append(flight.request.inputs[index])
        for flight in answers:
            flight.node = node
            if flight.dispatched_at == NEVER:
                flight.dispatched_at = self._queue.now
                flight.attempts += 1
        batch = Batch(action.batch_id, self._number, node, tuple(lengths) or (1,), answers)
        self._batches[action.batch_id] = batch
        self._after_network(self._on_submit_batch, batch)

    def _on_submit_batch(self, batch: Batch) -> None:
        if not batch.turn:
            self._fleet.submit(batch, batch.node)

    def _abort_batch(self, action: AbortBatch) -> None:
        batch = self._batches.pop(action.batch_id, None)
        if batch is not None:
            batch.turn += 1
            self._after_network(self._on_abort, (batch, batch.work, batch.node))

    def _reject(self, action: Reject) -> None:
        flight = self._clients.flights.get(action.request_id)
        if flight is not None:
            # The answer to a failed attempt names its engine.
            outcome = Outcome.REJECTED if action.engine is None else Outcome.FAILED
            self._clients.refuse(flight, outcome, action.status, action.retry_after)

    def _abort(self, action: Abort) -> None:
        self._close(action.request_id, self._fleet.node(action.engine))

    def _close(self, key: str, node: Node) -> None:
        """Close the connection of an attempt."""
        job = node.inside.get(key)
        flight = job or self._clients.flights.get(key)
        if isinstance(flight, Flight):
            # From here on nothing of this attempt is heard, whatever is on its way.
            flight.turn += 1
        if job is not None:
            self._after_network(self._on_abort, (job, job.work, node))

    def _on_abort(self, payload: tuple[Job, object, Node]) -> None:
        job, work, node = payload
        if job.work is work:
            self._fleet.abort(job, node)

    def _after_network(self, call: Callable[..., None], payload: object) -> None:
        self._queue.push(self._queue.now + self._network_s, call, payload)

    # -- what comes back from the engines ---------------------------------------------------

    def first_token(self, flight: Flight) -> None:
        """An engine has sent a first token."""
        self._after_network(self._on_first_token, (flight, flight.turn))

    def answered(self, job: Job) -> None:
        """An engine has sent a complete answer."""
        self._after_network(self._on_answer, (job, job.turn, job.work))

    def failed(self, job: Job, node: Node, cause: FailureCause, message: str) -> None:
        """An attempt has ended in an error."""
        self._after_network(self._on_failure, (job, job.turn, node.name, cause, message))

    def _await_progress(self, flight: Flight) -> None:
        now = self._queue.now
        due = max(now, now + self._progress_s - self._network_s)
        self._queue.push(due, self._on_progress_due, (flight, flight.turn))

    def _on_progress_due(self, payload: tuple[Flight, int]) -> None:
        """The stream's next token is to be told of: it leaves the engine at a step's border."""
        flight, turn = payload
        if flight.turn != turn or flight.ended or flight.node is None:
            return
        engine = flight.node.engine
        if isinstance(engine, LlmEngine):
            border = engine.next_step_at(self._queue.now)
            if border < math.inf:
                self._queue.push(border, self._on_border, (flight, turn))

    def _on_border(self, payload: tuple[Flight, int]) -> None:
        flight, turn = payload
        work, node = flight.work, flight.node
        if flight.turn != turn or node is None or not isinstance(work, LlmSequence):
            return
        if isinstance(node.engine, LlmEngine):
            tokens = node.engine.generated(work, self._queue.now)
            if tokens == work.output:
                return  # told with the answer's end
            if tokens <= flight.told_tokens:  # preempted
                self._on_progress_due(payload)
            else:
                self._after_network(self._on_progress, (flight, turn, tokens))

    def _on_progress(self, payload: tuple[Flight, int, int]) -> None:
        flight, turn, tokens = payload
        if flight.turn == turn and not flight.ended:
            self.tell(Progress(flight.key, tokens - flight.told_tokens))
            flight.told_tokens = tokens
            self._await_progress(flight)

    def _on_first_token(self, payload: tuple[Flight, int]) -> None:
        flight, turn = payload
        if flight.turn != turn or flight.ended:
            return
        flight.first_at = self._queue.now
        flight.told_tokens = 1
        if flight.request.traffic.stream:
            self.tell(FirstToken(flight.key))
            if self._progress_s:
                self._await_progress(flight)

    def _on_answer(self, payload: tuple[Job, int, LlmSequence | EmbeddingCall | None]) -> None:
        job, turn, work = payload
        if isinstance(job, Batch):
            if job.turn != turn:
                return
            del self._batches[job.batch_id]
            tokens = work.tokens if isinstance(work, EmbeddingCall) else 0
            for flight in job.answers:
                flight.inputs_left -= 1
                if not flight.inputs_left and not flight.ended:
                    self._clients.finish(flight)
            self.tell(BatchDone(job.batch_id, tokens))
            return
        if job.turn != turn or job.ended:
            return
        if isinstance(work, LlmSequence):
            self._facts.learn(job.request)
            self._clients.finish(job, work.max_gap_s, work.cached)
            self.tell(Done(job.key, work.prompt, work.output, work.cached))
        elif isinstance(work, EmbeddingCall):
            self._clients.finish(job)
            self.tell(Done(job.key, work.tokens, 0, 0))

    def _on_failure(self, payload: tuple[Job, int, str, FailureCause, str]) -> None:
        job, turn, engine, cause, message = payload
        if isinstance(job, Batch):
            if job.turn != turn:
                return
            del self._batches[job.batch_id]
            self.tell(BatchFailed(job.batch_id, engine, cause, True, False, message))
        elif job.turn == turn and not job.ended:
            # Until the client has seen a byte another engine may try.
            retryable = job.first_at == NEVER or not job.request.traffic.stream
            self.tell(Failed(job.key, engine, cause, retryable, message))
