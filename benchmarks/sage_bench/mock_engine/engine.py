"""A mock engine: its model, its routes, its books."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import orjson

from sage_bench.mock_engine.answers import Answer, embeddings
from sage_bench.mock_engine.api import KINDS, Job, Limits, Refusal, read_job
from sage_bench.mock_engine.connection import Connection, Request, Responder
from sage_bench.mock_engine.engine_metrics import EngineMetrics
from sage_bench.mock_engine.faults import FaultPlan
from sage_bench.mock_engine.generation import Generation
from sage_bench.mock_engine.pooling import PoolingClock
from sage_bench.mock_engine.wall_clock import WallClockEngine
from sage_bench.simulation.embedding_engine import (
    EmbeddingCall,
    EmbeddingEngine,
    EmbeddingEngineSpec,
)
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
from sage_bench.simulation.sequence import Sequence
from sage_prefect.common.errors import BenchmarkError

_KEPT_RECORDS = 1_000_000


@dataclass(frozen=True, slots=True)
class MockSpec:
    """What an engine is."""

    llm: LlmEngineSpec
    embedding: EmbeddingEngineSpec
    limits: Limits
    seed: int = 0
    """Of the faults' chance."""


@dataclass(slots=True)
class ServedRequest:
    """One line of an engine's books."""

    request_id: str
    kind: str
    priority: int
    prompt_tokens: int
    output_tokens: int
    outcome: str = "running"
    """``done``, ``aborted`` (its client went), ``lost`` (crash), ``refused``, ``fault`` or
    ``running``."""
    generated: int = 0


@dataclass(slots=True)
class Books:
    """What became of each request that came."""

    records: deque[ServedRequest] = field(default_factory=lambda: deque(maxlen=_KEPT_RECORDS))

    def open(self, request_id: str, kind: str, job: Job | None = None) -> ServedRequest:
        """A new line."""
        record = ServedRequest(request_id, kind, 0, 0, 0)
        if job is not None:
            record.priority = job.priority
            record.prompt_tokens, record.output_tokens = job.prompt, job.output
        self.records.append(record)
        return record

    def outcomes(self) -> dict[str, int]:
        """Lines by outcome."""
        return dict(Counter(record.outcome for record in self.records))


class MockEngine:
    """Serves vLLM's routes. Belongs to one event loop.

    Args:
        name: for the control port.
        spec: what it is.
    """

    def __init__(self, name: str, spec: MockSpec) -> None:
        self.name, self.spec = name, spec
        self.faults = FaultPlan(spec.seed)
        self.books = Books()
        self.llm = LlmEngine(spec.llm)
        self.clock = WallClockEngine(self.llm, time.monotonic)
        self.embedding = EmbeddingEngine(spec.embedding)
        self.pooling = PoolingClock(self.embedding, time.monotonic)
        self.metrics = EngineMetrics(spec.limits.models[0], self.llm, self.embedding)
        self._connections: set[Connection] = set()
        self._cold_until = 0.0
        self._no_one_left: asyncio.Future[None] | None = None

    # -- what befalls the whole engine ----------------------------------------------------

    def slow(self, factor: float) -> None:
        """All takes ``factor`` times as long from now on.

        Raises:
            BenchmarkError: not a number above 0.
        """
        if not 0 < factor < 1e6:
            raise BenchmarkError(f"slow-down factor {factor} is not in (0, 1e6).")
        self.clock.slow(factor)
        self.pooling.slow(factor)

    def stall(self, seconds: float) -> None:
        """It hangs for so long, connections stay open.

        Raises:
            BenchmarkError: not a time of at most a day.
        """
        self.clock.stall(checked_seconds("stall", seconds))
        self.pooling.stall(seconds)

    def cold(self, seconds: float) -> None:
        """It is loading its model: 503 for so long, ``/health`` included.

        Raises:
            BenchmarkError: not a time of at most a day.
        """
        self._cold_until = time.monotonic() + checked_seconds("cold", seconds)

    def crash(self) -> None:
        """Its process dies: all inside is lost, all connections are reset."""
        self.clock.crash()
        self.pooling.crash()
        for connection in list(self._connections):
            connection.abort()

    async def close(self) -> None:
        """Close all connections and stop."""
        self.clock.close()
        self.pooling.close()
        for connection in list(self._connections):
            connection.abort()
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

    # -- Service --------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self._connections.add(connection)

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._no_one_left is not None and not self._connections:
            self._no_one_left.set_result(None)

    def serve(self, request: Request, responder: Responder) -> None:
        if time.monotonic() < self._cold_until:
            responder.whole(503, Refusal(503, "the model is loading", code="loading").body())
            return
        kind = KINDS.get(request.path)
        try:
            if kind is not None:
                if request.method != b"POST":
                    raise Refusal(405, "Method Not Allowed")
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

    def _infer(self, kind: Any, request: Request, responder: Responder) -> None:
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
            self.metrics.prompt_tokens.inc(job.prompt)
            self.metrics.finished("stop")
            responder.whole(200, embeddings(job, request_id, self.spec.limits.dimensions))

        def gone() -> None:
            self.pooling.abort(call)
            if record.outcome == "running":
                record.outcome = "aborted" if responder.fault is None else "fault"
                self.metrics.finished("abort")

        responder.on_gone = gone
        self.pooling.submit(call, ended)

    def _generate(self, job: Job, request_id: str, responder: Responder) -> None:
        sequence = Sequence(request_id, job.prompt, job.output, job.priority, job.chain)
        if job.prompt + job.output > self.spec.llm.profile.kv_tokens:
            raise Refusal(
                400,
                f"{job.prompt} + {job.output} tokens do not fit in the KV cache of "
                f"{self.spec.llm.profile.kv_tokens}.",
            )
        record = self.books.open(request_id, job.kind, job)
        generation = Generation(Answer(job, request_id), sequence, responder, record, self.metrics)

        def gone() -> None:
            self.clock.abort(sequence)
            generation.aborted()

        responder.on_gone = gone
        self.clock.submit(sequence, generation)


def checked_seconds(what: str, seconds: float) -> float:
    """``seconds`` if it is a time of at most a day. Raises BenchmarkError."""
    if not (isinstance(seconds, (int, float)) and 0 <= seconds <= 86_400):
        raise BenchmarkError(f"{what}: {seconds!r} seconds is not in [0, 86400].")
    return float(seconds)
