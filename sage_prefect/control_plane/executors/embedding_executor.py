"""EmbeddingExecutor: the inputs of many embedding and rerank calls, in few calls of an engine.

Batch while busy, no timer: a batch is formed at once when an engine has a free call slot, so that
an idle system adds no wait and a busy one batches by itself (text-embeddings-inference's queue).
Simulated for mixed lengths on a ragged engine: p99 9 ms at 20 requests/s and 26 ms at 1,000, where
batches of 32 or 50 ms give 62 ms and overload.

A pure state machine: the manager calls it with the time and turns what it returns into actions.
Every input is queued, in flight, done, failed or removed: exactly one of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, count
from typing import Any

from sage_prefect.control_plane.accelerator_split import Speed
from sage_prefect.control_plane.event_bounds import MAX_TOKENS
from sage_prefect.control_plane.events import Band, BatchPart, EngineSpec, EngineState
from sage_prefect.control_plane.executors.batch_draft import MAX_INPUTS, BatchDraft
from sage_prefect.control_plane.executors.batch_filling import fill
from sage_prefect.control_plane.executors.call_budget import LatencySlack, worthwhile
from sage_prefect.control_plane.executors.embedding_engine import EmbeddingEngine, Load
from sage_prefect.control_plane.executors.engine_pool import EnginePool, Need
from sage_prefect.control_plane.executors.input_ledger import InputLedger
from sage_prefect.control_plane.executors.length_buckets import (
    APART,
    BatchedInput,
    BatchedRequest,
    InputState,
    Sheaf,
    Shelf,
    bounded_tokens,
)
from sage_prefect.control_plane.executors.open_batches import Batch, BatchOutcome, OpenBatches
from sage_prefect.control_plane.executors.shared_sites import SharedSites
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

MAX_ATTEMPTS = 3
"""Engines that may fail under an input before its request fails."""
MAX_FORMS = 16
"""Forms of calls that may wait side by side and be merged; a call of one more goes alone."""
MOST_COST_S = 3600.0
"""What one call or request may cost its tenant: an absurd profile must not spoil an account."""
_EXPLAINED = 8
_UNKNOWN_COST_S = 0.01
_SCALE_RATE, _SCALE_CLAMP = 0.05, 4.0
_IN_FLIGHT = InputState.IN_FLIGHT


class EmbeddingExecutor:
    """Queue, batches and engines of one embedding or rerank model.

    Args:
        model: its name.
        batch_ids: numbers of its batches; executors that share a driver share this.
        sites: what its engines may take of accelerators that they share with LLM engines.
    """

    def __init__(
        self,
        model: str,
        batch_ids: Iterator[int] | None = None,
        sites: SharedSites | None = None,
    ) -> None:
        self.model = model
        self._batch_ids = batch_ids if batch_ids is not None else count(1)
        self._ledger = InputLedger()
        self._waiting = self._ledger.waiting
        self._pool = EnginePool(sites or SharedSites())
        self._batches = OpenBatches()
        self._slack = LatencySlack()
        self._scale = 1.0  # tokens that engines count per token estimated
        self._wake_at = math.inf

    # -- reading --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Requests that are not finished."""
        return len(self._ledger.requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ledger.requests

    @property
    def counts(self) -> dict[InputState, int]:
        """Inputs ever added, by where they are now."""
        return dict(self._ledger.counts)

    @property
    def queued(self) -> int:
        """Inputs that wait for a batch."""
        return len(self._waiting)

    @property
    def open_batches(self) -> int:
        """Batches inside engines."""
        return len(self._batches)

    @property
    def wake_at(self) -> float:
        """When to ask :meth:`next_batch` again if nothing happens: what waits for a better engine
        gives it up then. Infinity: never."""
        return self._wake_at

    def batches_in(self, engine: str) -> tuple[int, ...]:
        """Batches inside an engine, oldest first."""
        entry = self._pool.get(engine)
        return entry.calls if entry is not None else ()

    def charges(self, batch_id: int) -> dict[str, float]:
        """Request -> its part of the engine-seconds (times price) that an open batch costs."""
        return self._batches[batch_id].charges()

    def alone_s(self, batch_id: int) -> float:
        """Seconds that an open batch takes in its engine without a neighbour."""
        batch = self._batches[batch_id]
        return batch.engine.cost.alone_s(batch.draft.work * self._scale)

    def tokens(self, request: ScheduledRequest) -> float:
        """Tokens that engines are likely to count in a request."""
        return request.info.prompt_tokens * self._scale

    def speed(self) -> Speed | None:
        """How fast its engines are; None where none is on an accelerator."""
        return self._pool.speed(self._scale * sum(self._waiting.tokens))

    def cost_s(self, request: ScheduledRequest) -> float:
        """Engine-seconds that a request is likely to cost, times price, its calls' fixed part left
        out."""
        engine = self._pool.any_cost()
        if engine is None:
            return _UNKNOWN_COST_S
        tokens = request.info.prompt_tokens * self._scale
        return min(MOST_COST_S, engine.spec.price * engine.cost.alpha * tokens)

    def wait_s(self, band: Band) -> float:
        """Seconds that the engines need for what waits in ``band`` and more urgent ones; 0 while
        none serves: one that is being started may be waited for."""
        tokens = self._scale * sum(self._waiting.tokens[: band + 1])
        rate = self._pool.rate()
        return tokens / rate if rate > 0 else 0.0

    def candidates(self, now: float) -> list[dict[str, object]]:
        """For ``explain``: engines that a request of this model may go to."""
        return self._pool.listed(now, _EXPLAINED)

    def story(self, request_id: str) -> dict[str, Any]:
        """For ``explain``: how many inputs of a request are where, and in which engines.

        Empty for a request that is not here.
        """
        return self._ledger.story(request_id, self._batches.engine_of)

    # -- requests -------------------------------------------------------------------------

    def add(
        self,
        request: ScheduledRequest,
        band: Band,
        deadline: float,
        debt_s: float,
    ) -> None:
        """Queue all inputs of a request.

        Without a ``merge_key`` (rerank calls, inputs of unknown shape) it stays whole: it counts as
        one input and shares no batch.

        Args:
            request: embedding or rerank.
            band: in force.
            deadline: absolute seconds; infinity: none. Earlier ones go first in a band.
            debt_s: seconds that its tenant is ahead of its share: it stands back by so much.

        Raises:
            RuntimeError: a request of this id is here already: the caller has a bug.
        """
        info = request.info
        if deadline != deadline:
            deadline = math.inf
        key, forms, tried = info.merge_key, self._waiting.forms, request.tried
        call = BatchedRequest(
            info.request_id,
            band,
            (deadline + debt_s, debt_s, request.seq),
            alone=key is None or (key not in forms and len(forms) >= MAX_FORMS),
            form=key or 0,
            deadline=deadline,
        )
        whole = key is None or not info.inputs
        lengths = (sum(info.inputs) or info.prompt_tokens,) if whole else info.inputs
        keys = (
            info.input_keys
            if not whole and len(info.input_keys) == len(lengths)
            else (None,) * len(lengths)
        )
        call.inputs = [
            BatchedInput(
                call, index, bounded_tokens(tokens), key, faults=len(tried), avoid=request.tried
            )
            for index, (tokens, key) in enumerate(zip(lengths, keys, strict=True))
        ]
        self._ledger.open(call)
        self._slack.saw(band, request.arrived, deadline)

    def remove(self, request_id: str) -> tuple[int, ...]:
        """Forget a request (cancelled, expired); an unknown one is a no-op.

        Returns:
            Batches in an engine that nobody waits for any more: their calls may be closed. They
            are still to be answered by :meth:`batch_done` or :meth:`batch_failed`.
        """
        request = self._ledger.requests.get(request_id)
        if request is None:
            return ()
        return self._batches.unwant(self._ledger.close(request, InputState.REMOVED))

    def promote(self, request_id: str, band: Band, now: float = math.inf) -> None:
        """A request has waited long: what is queued of it goes on in another band.

        Args:
            now: its place there is that of a request which is due at this time.
        """
        request = self._ledger.requests.get(request_id)
        if request is not None and request.band is not band:
            request.band = band
            due, debt_s, seq = request.order
            request.order = (min(due, now), debt_s, seq)
            self._ledger.refile(request)

    # -- engines --------------------------------------------------------------------------

    def engine_changed(self, name: str, spec: EngineSpec, state: EngineState, slots: int) -> None:
        """An engine came, or its state, specification or slots (calls inside at once) changed."""
        if name != spec.name:
            raise RuntimeError(f"engine {name!r} has the specification of {spec.name!r}.")
        self._pool.put(spec, state, slots)

    def engine_gone(self, name: str) -> None:
        """An engine was removed; batches inside it may still end either way."""
        self._pool.drop(name)

    # -- batches --------------------------------------------------------------------------

    def next_batch(self, now: float) -> tuple[int, str, tuple[BatchPart, ...]] | None:
        """Form the next batch: (batch id, engine, parts), or None if none can go now.

        To be asked until None after each event. O(batch log n).
        """
        self._wake_at = math.inf
        if not len(self._waiting) or not self._pool.has_free:
            return None
        held: set[Shelf] = set()
        for shelf, sheaf in self._by_urgency():
            need = self._need(shelf, sheaf, now)
            engine, until = self._pool.choose(need, now)
            if engine is not None:
                draft = self._form(engine, shelf, sheaf, held, now)
                return self._send(engine, draft, shelf.bucket == APART, now)
            held.add(shelf)
            self._wake_at = min(self._wake_at, until)
        return None

    def batch_done(self, batch_id: int, now: float, prompt_tokens: int | None = None) -> list[str]:
        """A batch was answered. Unknown batches are ignored.

        Args:
            prompt_tokens: what the engine counted over all inputs that were sent.

        Returns:
            The requests whose inputs are now all done; they are forgotten.
        """
        batch = self._batches.close(batch_id)
        if batch is None:
            return []
        ratio = self._scale
        if prompt_tokens and 0 <= prompt_tokens <= MAX_TOKENS:
            seen = prompt_tokens / batch.draft.tokens
            ratio = min(_SCALE_CLAMP, max(1 / _SCALE_CLAMP, seen))
            self._scale += _SCALE_RATE * (ratio - self._scale)
        self._settle(batch.engine, batch_id, now, batch.draft.work * ratio)
        return self._ledger.done(chain.from_iterable(batch.live()))

    def batch_failed(
        self,
        batch_id: int,
        now: float,
        retryable: bool,
        bad_input: bool,
        *,
        attempts: int = MAX_ATTEMPTS,
        only_elsewhere: bool = False,
    ) -> BatchOutcome:
        """A batch failed. Unknown batches are ignored.

        A bad input is isolated by halving: each half is sent once more, apart from other inputs,
        down to single inputs, whose requests fail. When the engine is to blame its inputs go to
        others, ``attempts`` times in all.

        Args:
            retryable: another engine may succeed; else all its requests fail.
            bad_input: the engine blames what it was sent.
            only_elsewhere: an input is not sent again where no other engine serves.
        """
        batch = self._batches.close(batch_id)
        if batch is None:
            return BatchOutcome()
        self._settle(batch.engine, batch_id, now, None)
        if bad_input:
            return self._halve(batch)
        doomed = []
        live = [one for part in batch.live() for one in part]
        for one in live:
            one.faults += 1
            one.avoid |= {batch.engine.name}
            lost = only_elsewhere and not self._pool.has_other(one.avoid)
            if not retryable or one.faults >= attempts or lost:
                doomed.append(one.request)
        failed, orphaned = self._fail(doomed)
        again = [one for one in live if one.state is _IN_FLIGHT]
        self._ledger.requeue(again, apart=batch.apart)
        return BatchOutcome(failed, len(again), orphaned)

    # -- forming --------------------------------------------------------------------------

    def _by_urgency(self) -> list[tuple[Shelf, Sheaf]]:
        heads = [
            (shelf, head) for shelf in self._waiting.shelves() if (head := shelf.head()) is not None
        ]
        heads.sort(key=lambda at: (at[0].band, at[1].order))
        return heads

    def _need(self, shelf: Shelf, sheaf: Sheaf, now: float) -> Need:
        first = sheaf.head_input()
        return Need(
            rest=first.request.queued_tokens * self._scale,
            slack_s=sheaf.deadline - now,
            latency_slack_s=self._slack.at(now),
            avoid=self._pool.may_take(shelf.avoid),
            ahead=sum(self._waiting.tokens[: shelf.band + 1]) * self._scale,
            urgent=shelf.band <= Band.INTERACTIVE,
        )

    def _form(
        self, engine: EmbeddingEngine, shelf: Shelf, sheaf: Sheaf, held: set[Shelf], now: float
    ) -> BatchDraft:
        waits = self._waiting.tokens
        scale = self._scale
        part = scale * self._part(engine, scale * sum(waits))
        tokens = engine.call_tokens(
            sheaf.head_input().tokens * scale,
            sheaf.deadline - now,
            self._slack.at(now),
            Load(part * sum(waits), part * sum(waits[: Band.INTERACTIVE + 1])),
            now,
        )
        draft = BatchDraft(
            padded=engine.spec.padded, max_inputs=engine.spec.max_batch_inputs or MAX_INPUTS
        )
        company = [
            other
            for other in self._waiting.shelves()
            if other.form == shelf.form
            and other not in held
            and engine.name not in self._pool.may_take(other.avoid)
        ]
        fill(draft, self._waiting, shelf, company, tokens / scale)
        return draft

    def _part(self, engine: EmbeddingEngine, tokens: float) -> float:
        """The part of all that waits which ``engine`` is to take, as far as its calls hold it."""
        if tokens <= worthwhile(engine.cost):
            return 1.0  # one short call
        # On an accelerator that is shared each call's fixed cost is taken from the neighbour.
        return 1.0 if self._pool.is_crowded(engine) else self._pool.part_of(engine)

    def _send(
        self, engine: EmbeddingEngine, draft: BatchDraft, apart: bool, now: float
    ) -> tuple[int, str, tuple[BatchPart, ...]]:
        batch_id = next(self._batch_ids)
        self._ledger.sent(chain.from_iterable(draft.parts), batch_id)
        tokens = draft.work * self._scale
        cost_s = min(MOST_COST_S, engine.spec.price * engine.cost.call_s(tokens))
        self._batches.open(batch_id, Batch(engine, draft, apart, cost_s))
        engine.send(batch_id, tokens, now)
        self._pool.settle(engine)
        return batch_id, engine.name, draft.as_parts()

    # -- ending ---------------------------------------------------------------------------

    def _settle(
        self, engine: EmbeddingEngine, batch_id: int, now: float, tokens: float | None
    ) -> None:
        engine.ended(batch_id, now, tokens)
        self._pool.settle(engine)

    def _halve(self, batch: Batch) -> BatchOutcome:
        parts = batch.live()
        if len(batch.draft.parts) == 1:
            failed, orphaned = self._fail([one.request for part in parts for one in part])
            return BatchOutcome(failed, 0, orphaned)
        # What was removed meanwhile may have been the bad one: also a last part is tried again.
        middle = (len(parts) + 1) // 2
        for half in (parts[:middle], parts[middle:]):
            self._ledger.requeue([one for part in half for one in part], apart=True)
        return BatchOutcome((), sum(len(part) for part in parts))

    def _fail(self, requests: list[BatchedRequest]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        unwanted: list[BatchedInput] = []
        unique = {request.request_id: request for request in requests}
        for request in unique.values():
            unwanted += self._ledger.close(request, InputState.FAILED)
        return tuple(unique), self._batches.unwant(unwanted)
