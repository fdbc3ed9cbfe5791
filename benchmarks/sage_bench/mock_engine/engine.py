"""A mock engine: its model, its routes, its books."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from sage_bench.mock_engine.answers import Answer, embeddings
from sage_bench.mock_engine.api import KINDS, Job, Kind, Limits, Refusal, read_job
from sage_bench.mock_engine.books import Books
from sage_bench.mock_engine.connection import Connection, Request, Responder
from sage_bench.mock_engine.engine_metrics import EngineMetrics
from sage_bench.mock_engine.faults import FaultPlan
from sage_bench.mock_engine.generation import Generation
from sage_bench.mock_engine.outages import Outage
from sage_bench.mock_engine.pooling import PoolingClock
from sage_bench.mock_engine.virtual_time import EngineTime
from sage_bench.mock_engine.wall_clock import WallClockEngine
from sage_bench.simulation.embedding_engine import (
    EmbeddingCall,
    EmbeddingEngine,
    EmbeddingEngineSpec,
)
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.sequence import Phase, Sequence


@dataclass(frozen=True, slots=True)
class MockSpec:
    """What an engine is.

    ``max_queued_requests`` and ``max_queued_tokens`` are vLLM's admission limits: a request that
    comes when so many (so many prompt tokens) wait is answered with 503.
    """

    llm: LlmEngineSpec
    embedding: EmbeddingEngineSpec
    limits: Limits
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    seed: int = 0
    """Of the faults' chance."""


class MockEngine:
    """Serves vLLM's routes. Belongs to one event loop.

    Its LLM and its embedding side do not slow each other.

    Args:
        name: for the control port.
        spec: what it is.
        time_: engine time.
    """

    def __init__(self, name: str, spec: MockSpec, time_: EngineTime) -> None:
        self.name, self.spec, self.time = name, spec, time_
        self.faults = FaultPlan(spec.seed)
        self.books = Books()
        self.llm = LlmEngine(spec.llm)
        self.embedding = EmbeddingEngine(spec.embedding)
        self.metrics = EngineMetrics(spec.limits.models[0], self.llm, self.embedding)
        self.clock = WallClockEngine(self.llm, time_, self.metrics)
        self.pooling = PoolingClock(self.embedding, time_)
        self._connections: set[Connection] = set()
        self._mute = False
        self._cold_until = self._refuse_until = 0.0
        self._no_one_left: asyncio.Future[None] | None = None

    # -- what befalls the whole engine ----------------------------------------------------

    def suffer(self, outage: Outage, later: Callable[[float, Callable[[], None]], None]) -> None:
        """An outage begins. Those that end somebody's listening are the server's: of ``crash``
        this does what happens inside.

        Args:
            later: calls after so many engine seconds.
        """
        kind, seconds, now = outage.kind, outage.seconds, self.time.now()
        if kind == "slow":
            self._slow(outage.factor)
            if seconds:
                later(seconds, lambda: self._slow(1.0))
        elif kind == "stall":
            self.clock.stall(seconds)
            self.pooling.stall(seconds)
        elif kind == "refuse":
            self._refuse_until = now + seconds
        elif kind == "cold":
            self._cold_until = now + seconds
        elif kind == "half_open":
            self._lose_all()
            self._mute = True
            for connection in self._connections:
                connection.mute()
            later(seconds, lambda: self._end_half_open(outage.cold_s))
        else:
            self._lose_all()
            self._reset_connections()
            self._cold_until = now + seconds + outage.cold_s

    async def close(self) -> None:
        """Close all connections and stop."""
        self.clock.close()
        self.pooling.close()
        self._reset_connections()
        if self._connections:
            self._no_one_left = asyncio.get_running_loop().create_future()
            await self._no_one_left

    def state(self) -> dict[str, Any]:
        """For the control port."""
        return {
            "name": self.name,
            "models": list(self.spec.limits.models),
            "running": self.llm.running + self.embedding.running,
            "waiting": self.llm.waiting + self.embedding.waiting,
            "connections": len(self._connections),
            "requests": len(self.books.records),
            "outcomes": self.books.outcomes(),
            "preemptions": self.llm.preemptions,
            "timer_lateness_ms": self.clock.lateness_s * 1e3,
            "faults": len(self.faults.waiting()),
        }

    def _slow(self, factor: float) -> None:
        self.clock.slow(factor)
        self.pooling.slow(factor)

    def _lose_all(self) -> None:
        self.clock.crash()
        self.pooling.crash()
        self.metrics.restart()

    def _reset_connections(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def _end_half_open(self, cold_s: float) -> None:
        self._mute = False
        self._reset_connections()
        self._cold_until = self.time.now() + cold_s

    # -- Service --------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._mute:
            connection.mute()

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._no_one_left is not None and not self._connections:
            self._no_one_left.set_result(None)

    def serve(self, request: Request, responder: Responder) -> None:
        now = self.time.now()
        if now < self._cold_until:
            responder.whole(503, Refusal(503, "the model is loading", code="loading").body())
            return
        kind = KINDS.get(request.path)
        try:
            if kind is not None:
                if request.method != b"POST":
                    raise Refusal(405, "Method Not Allowed")
                if now < self._refuse_until:
                    raise Refusal(503, "as ordered", code="ServiceUnavailableError")
                self._infer(kind, request, responder)
            else:
                self._inform(request, responder)
        except Refusal as refusal:
            responder.whole(refusal.status, refusal.body())

    # -- inside ---------------------------------------------------------------------------

    def _inform(self, request: Request, responder: Responder) -> None:
        if request.method != b"GET":
            raise Refusal(404, "Not Found")
        if request.path in (b"/health", b"/ping"):
            responder.whole(200, b"")
        elif request.path == b"/metrics":
            text = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            responder.whole(200, self.metrics.render(), text)
        elif request.path == b"/version":
            responder.whole(200, b'{"version":"0.32.0+mock"}')
        elif request.path == b"/v1/models":
            limits = self.spec.limits
            models = [
                {"id": model, "object": "model", "created": 0, "owned_by": "sage-mock",
                 "root": model, "parent": None, "max_model_len": limits.max_model_len}
                for model in limits.models
            ]  # fmt: skip
            responder.whole(200, orjson.dumps({"object": "list", "data": models}))
        else:
            raise Refusal(404, "Not Found")

    def _infer(self, kind: Kind, request: Request, responder: Responder) -> None:
        headers = request.headers
        request_id = headers.get(b"x-request-id", b"").decode("latin-1") or secrets.token_hex(8)
        fault = self.faults.take()
        if fault is not None:
            responder.befall(fault)
            if fault.kind == "status" or not responder.open:
                self.books.open(request_id, kind).outcome = "fault"
                if fault.kind == "status":
                    retry = fault.retry_after
                    more = () if retry is None else ((b"retry-after", b"%d" % retry),)
                    responder.whole(fault.status, Refusal(fault.status, "as ordered").body(), *more)
                return
        try:
            job = read_job(
                kind,
                request.body,
                headers.get(b"x-vllm-priority"),
                self.spec.limits,
                self.spec.llm.block_tokens,
            )
            if kind == "embedding":
                self._embed(job, request_id, responder)
            else:
                self._generate(job, request_id, responder)
        except Refusal:
            self.books.open(request_id, kind).outcome = "refused"
            raise

    def _embed(self, job: Job, request_id: str, responder: Responder) -> None:
        record = self.books.open(request_id, job.kind, job)
        call = EmbeddingCall(request_id, job.inputs)

        def ended(served: bool) -> None:
            if not served:
                record.outcome = "lost"
                return
            record.outcome = "done" if responder.fault is None else "fault"
            self.metrics.prompt_tokens += job.prompt
            self.metrics.finished["stop"] += 1
            responder.whole(200, embeddings(job, request_id, self.spec.limits.dimensions))

        def gone() -> None:
            self.pooling.abort(call)
            if record.outcome == "running":
                record.outcome = "aborted" if responder.fault is None else "fault"
                self.metrics.finished["abort"] += 1

        responder.on_gone = gone
        self.pooling.submit(call, ended)

    def _generate(self, job: Job, request_id: str, responder: Responder) -> None:
        sequence = Sequence(request_id, job.prompt, job.output, job.priority, job.chain)
        kv_tokens = self.spec.llm.profile.kv_tokens
        if job.prompt + job.output > kv_tokens:
            raise Refusal(
                400, f"{job.prompt} + {job.output} tokens do not fit in {kv_tokens} of KV cache."
            )
        self._admit(job)
        record = self.books.open(request_id, job.kind, job)
        generation = Generation(
            Answer(job, request_id), sequence, responder, record, self.metrics, self.time.now()
        )

        def gone() -> None:
            self.clock.abort(sequence)
            generation.aborted()

        responder.on_gone = gone
        self.clock.submit(sequence, generation)

    def _admit(self, job: Job) -> None:
        spec, waiting = self.spec, self.llm.waiting
        reason = None
        if spec.max_queued_requests is not None and waiting >= spec.max_queued_requests:
            reason = "max_num_queued_reqs"
        elif spec.max_queued_tokens is not None and waiting:
            line = (s.prompt for s in self.llm.sequences() if s.phase is Phase.WAITING)
            if sum(line) + job.prompt > spec.max_queued_tokens:
                reason = "max_num_queued_tokens"
        if reason is not None:
            self.metrics.admission_rejections[reason] += 1
            raise Refusal(503, f"{reason} reached.", code="ServiceUnavailableError")
