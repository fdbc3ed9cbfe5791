"""Runs waiting texts through the model: batches while busy, no timer.

The event loop owns the waiting set. Whenever a worker is free and something waits, it takes a batch
and hands it to the worker; what arrives meanwhile waits and makes the next batches fuller. So a
lone request is never delayed, and batches grow with the load by themselves.

After text-embeddings-inference (core/src/queue.rs, infer.rs), which bounds a batch by tokens too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sage_prefect.platform.embedding_server.encoder import Encoder
from sage_prefect.platform.embedding_server.metrics import Metrics
from sage_prefect.platform.embedding_server.waiting import Entry, Job, WaitingSet

log = logging.getLogger(__name__)

# Below this many tokens a batch is not split further to keep a second worker busy: the fixed cost
# of a forward pass would eat the gain.
_MIN_SHARE = 128

_Output = tuple[NDArray[np.float32], float]  # vectors, seconds


@dataclass
class EmbeddingResult:
    """A finished request.

    Attributes:
        vectors: float32 [texts, dimension], in the order of the texts.
        queue_s: from submission until the first text entered the model, in seconds.
        compute_s: this request's share (by tokens) of the time that its batches took, in seconds.
    """

    vectors: NDArray[np.float32]
    queue_s: float = 0.0
    compute_s: float = 0.0


class _Pending:
    """A request that waits for its vectors."""

    __slots__ = ("finished", "left", "result", "started", "submitted_at")

    def __init__(self, texts: int, dimension: int, now: float) -> None:
        self.result = EmbeddingResult(np.empty((texts, dimension), dtype=np.float32))
        self.left = texts
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submitted_at = now
        self.started = False


class Batcher:
    """Owner of the queue. Use it from one event loop only.

    Args:
        encoder: the model.
        workers: threads that run the model, each a batch at a time.
        token_budget: most tokens of a batch, padding counted.
        on_thread_start: called first in each worker thread.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        workers: int,
        token_budget: int,
        metrics: Metrics,
        on_thread_start: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._encoder = encoder
        self._token_budget = token_budget
        self._metrics = metrics
        self._clock = clock
        self._waiting = WaitingSet()
        self._pending: dict[Job, _Pending] = {}
        self._idle = self._workers = workers
        self._running_tokens = 0
        self._tokens_per_s: float | None = None  # of one worker, smoothed
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="embed", initializer=on_thread_start
        )

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or run."""
        return self._waiting.tokens + self._running_tokens

    def seconds_for(self, tokens: int) -> float | None:
        """How long this many tokens take at the measured rate; None before the first batch."""
        if self._tokens_per_s is None:
            return None
        return tokens / (self._tokens_per_s * self._workers)

    async def embed(self, texts: Sequence[list[int]]) -> EmbeddingResult:
        """Run texts (token ids) through the model.

        When the awaiting task is cancelled, what has not started yet is dropped.

        Raises:
            Exception: whatever the model raised on a batch with a text of this request.
        """
        pending = _Pending(len(texts), self._encoder.dimension, self._clock())
        if not texts:
            return pending.result
        job = Job(texts)
        self._pending[job] = pending
        self._waiting.add(job)
        self._pump()
        try:
            await pending.finished
        except asyncio.CancelledError:
            self._metrics.dropped_texts.inc(job.waiting)
            raise
        finally:
            del self._pending[job]
            self._waiting.drop(job)
            self._observe_queue()
        return pending.result

    async def warm_up(self) -> None:
        """One forward pass on every worker, so that the first request meets no lazy set-up."""
        sample = [text.ids for text in self._encoder.tokenize(["warm up"] * 8)]
        barrier = threading.Barrier(self._workers)

        def run() -> None:
            barrier.wait()  # so that no thread takes two of the tasks
            self._encoder.encode(sample)

        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._pool, run) for _ in range(self._workers)))

    def close(self) -> None:
        """End the worker threads; running batches finish first."""
        self._pool.shutdown(wait=True)

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._waiting.texts:
            share = max(_MIN_SHARE, -(-self._waiting.tokens // self._idle))
            batch = self._waiting.next_batch(min(self._token_budget, share))
            now = self._clock()
            for entry in batch:
                pending = self._pending[entry.job]
                if not pending.started:
                    pending.started = True
                    pending.result.queue_s = now - pending.submitted_at
                    self._metrics.queue_seconds.observe(pending.result.queue_s)
            tokens = sum(len(entry.ids) for entry in batch)
            self._idle -= 1
            self._running_tokens += tokens
            running = loop.run_in_executor(self._pool, self._run, batch)
            running.add_done_callback(partial(self._finish, batch, tokens))
        self._observe_queue()

    def _run(self, batch: list[Entry]) -> _Output:
        start = self._clock()
        vectors = self._encoder.encode([entry.ids for entry in batch])
        return vectors, self._clock() - start

    def _finish(self, batch: list[Entry], tokens: int, done: asyncio.Future[_Output]) -> None:
        self._idle += 1
        self._running_tokens -= tokens
        error = done.exception()
        if error is not None:
            self._fail(batch, error)
        else:
            vectors, seconds = done.result()
            self._deliver(batch, vectors, tokens, seconds)
        self._pump()

    def _deliver(
        self, batch: list[Entry], vectors: NDArray[np.float32], tokens: int, seconds: float
    ) -> None:
        rate = tokens / max(seconds, 1e-6)
        previous = self._tokens_per_s
        self._tokens_per_s = rate if previous is None else 0.9 * previous + 0.1 * rate
        width = max(len(entry.ids) for entry in batch)
        self._metrics.observe_batch(
            texts=len(batch), tokens=tokens, padding=width * len(batch) - tokens, seconds=seconds
        )
        for entry, vector in zip(batch, vectors, strict=True):
            pending = self._pending.get(entry.job)
            if pending is None:  # its client has gone
                continue
            pending.result.vectors[entry.index] = vector
            pending.result.compute_s += seconds * len(entry.ids) / max(tokens, 1)
            pending.left -= 1
            if not pending.left and not pending.finished.done():
                pending.finished.set_result(None)

    def _fail(self, batch: list[Entry], error: BaseException) -> None:
        log.error("a batch of %d texts failed", len(batch), exc_info=error)
        self._metrics.failed_batches.inc()
        for entry in batch:
            self._waiting.drop(entry.job)
            pending = self._pending.get(entry.job)
            if pending is not None and not pending.finished.done():
                pending.finished.set_exception(error)

    def _observe_queue(self) -> None:
        self._metrics.queued_texts.set(self._waiting.texts)
        self._metrics.queued_tokens.set(self._waiting.tokens)
