"""All engines in virtual time: work goes in, and what leaves them is told to a listener."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from sage_bench.simulation.cluster import Node, NodeSpec, make_nodes
from sage_bench.simulation.embedding_engine import EmbeddingCall, EmbeddingEngine
from sage_bench.simulation.event_queue import EventQueue
from sage_bench.simulation.faults import Fault
from sage_bench.simulation.flight import Batch, Flight, Job
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.sequence import Sequence as LlmSequence
from sage_prefect.common.errors import BenchmarkError
from sage_prefect.control_plane.events import FailureCause


class Listener(Protocol):
    """Is told what leaves the engines, at the time when it does."""

    def first_token(self, flight: Flight) -> None:
        """The first token of an answer."""

    def answered(self, job: Job) -> None:
        """An answer is complete; ``job.work`` says how it went."""

    def failed(self, job: Job, node: Node, cause: FailureCause, message: str) -> None:
        """An attempt ended in an error."""

    def noticed(self, node: Node, fault: Fault) -> None:
        """A fault that probes can see has begun or ended."""


class Fleet:
    """The engines.

    Args:
        specs: one per engine.
        queue: virtual time.
        listener: is told what leaves them.
        faults: what goes wrong when.
    """

    def __init__(
        self,
        specs: list[NodeSpec],
        queue: EventQueue,
        listener: Listener,
        faults: Sequence[Fault] = (),
    ) -> None:
        self.nodes = make_nodes(specs)
        self.wasted_tokens = 0
        """Tokens computed for attempts that were aborted or failed."""
        self._queue = queue
        self._listener = listener
        self._by_name = {node.name: node for node in self.nodes}
        for fault in faults:
            for node in self.nodes:
                if fault.hits(node.name):
                    queue.push(fault.at_s, self._on_fault, (fault, node))

    def node(self, name: str) -> Node:
        """The engine of this name."""
        return self._by_name[name]

    def submit(self, job: Job, node: Node) -> None:
        """Hand work to an engine; a refusal is told to the listener."""
        engine = node.engine
        if not node.up:
            self._listener.failed(job, node, FailureCause.CONNECT, "connection refused")
            return
        limit = node.spec.max_waiting
        if node.refusing or (limit is not None and engine.waiting >= limit):
            self._listener.failed(job, node, FailureCause.OVERLOADED, "503 from the engine")
            return
        now = self._queue.now
        if isinstance(engine, LlmEngine):
            if not isinstance(job, Flight):
                raise RuntimeError(f"a batch of inputs was sent to the LLM engine {node.name!r}.")
            request = job.request
            priority = int(request.traffic.band) if engine.spec.scheduling == "priority" else 0
            sequence = LlmSequence(
                job, request.prompt, request.output, priority, request.chain, request.chain_after
            )
            try:
                engine.submit(sequence, now)
            except BenchmarkError as error:
                self._listener.failed(job, node, FailureCause.STATUS, f"400: {error.message}")
                return
            job.work = sequence
        else:
            lengths = job.lengths if isinstance(job, Batch) else job.request.inputs
            call = EmbeddingCall(job, lengths)
            job.work = call
            engine.submit(call, now)
        node.inside[job.key] = job
        self._arm(node)

    def abort(self, job: Job, node: Node) -> None:
        """Close the connection of an attempt, if it is inside."""
        if node.inside.pop(job.key, None) is None:
            return
        work, engine = job.work, node.engine
        if isinstance(work, LlmSequence) and isinstance(engine, LlmEngine):
            engine.abort(work, self._queue.now)
        elif isinstance(work, EmbeddingCall) and isinstance(engine, EmbeddingEngine):
            engine.abort(work)
        self._waste(job)
        self._rearm(node)

    # -- time -----------------------------------------------------------------------------

    def _arm(self, node: Node) -> None:
        at = node.engine.next_at
        if at < node.armed_at:
            node.armed_at = at
            self._queue.push(at, self._on_wake, (node, at))

    def _rearm(self, node: Node) -> None:
        if node.engine.next_at != node.armed_at:
            node.armed_at = math.inf
            self._arm(node)

    def _on_wake(self, payload: tuple[Node, float]) -> None:
        node, at = payload
        if node.armed_at != at:
            return
        node.armed_at = math.inf
        engine, listener = node.engine, self._listener
        if isinstance(engine, LlmEngine):
            for emission in engine.advance(self._queue.now):
                flight = emission.sequence.key
                if not isinstance(flight, Flight) or flight.work is not emission.sequence:
                    continue  # an attempt that was given up meanwhile
                if emission.finished:
                    self._complete(node, flight)
                else:
                    listener.first_token(flight)
        else:
            for answer in engine.advance(self._queue.now):
                job = answer.call.key
                if not isinstance(job, (Flight, Batch)) or job.work is not answer.call:
                    continue
                self._complete(node, job)
        if node.neighbour is not None:
            node.neighbour.apply_stretch(self._queue.now)
            self._rearm(node.neighbour)
        self._arm(node)

    def _complete(self, node: Node, job: Job) -> None:
        del node.inside[job.key]
        self._listener.answered(job)
        # Work and job point at each other: part them, for the collector is off in long runs.
        job.work = None

    # -- faults ---------------------------------------------------------------------------

    def _on_fault(self, payload: tuple[Fault, Node]) -> None:
        fault, node = payload
        now = self._queue.now
        follow_up = fault.apply(node, now)
        if fault.loses_work:
            lost = list(node.inside.values())
            node.inside.clear()
            for job in lost:
                self._waste(job)
                self._listener.failed(job, node, FailureCause.RESET, "connection reset")
        self._rearm(node)
        self._listener.noticed(node, fault)
        if follow_up is not None:
            self._queue.push(follow_up.at_s, self._on_fault, (follow_up, node))

    def _waste(self, job: Job) -> None:
        work = job.work
        if isinstance(work, LlmSequence):
            self.wasted_tokens += work.prefill_length - work.prefill_left + work.generated
        elif isinstance(work, EmbeddingCall):
            self.wasted_tokens += work.tokens
        job.work = None
