"""Which engine: a score per candidate, the best one wins, near ties by chance.

Candidates are all engines of a small pool; of a large one the holders of the longest known
prefixes, the least loaded and two at random. The score of a latency request is its predicted time
to first token, more with each latency request inside, which its prompt delays; unless all
candidates have a trusted model it is LMetric's product of pending prefill and requests (arXiv
2603.15202). Batch work is packed: into batch-preferred engines first, the fullest that takes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from random import Random

from sage_prefect.control_plane.engine_load import RECENT_LATENCY_S, EngineLoad
from sage_prefect.control_plane.engine_seconds import DEFAULT_OUTPUT
from sage_prefect.control_plane.events import Band, EngineState
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.prefix_index import PrefixIndex
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

BATCH_EVERY_S = 10.0
"""A ready engine gets a batch request at least this often unless its latency requests are late: no
gate, however wrong its model, starves batch work."""
_DEFAULT_TPOT_S, _DEFAULT_TTFT_S = 0.1, 2.0

Scored = tuple[EngineLoad, float, float]
"""(engine, score, uncached prompt tokens there)"""

_READY, _WARMING = EngineState.READY, EngineState.WARMING
_NONE_CACHED: dict[str, float] = {}


class EngineChoice:
    """Chooses among the engines of one model."""

    def __init__(
        self,
        parameters: HybridParameters,
        index: PrefixIndex,
        rng: Random,
        lent: AbstractSet[str] = frozenset(),
    ) -> None:
        self.parameters = parameters
        self.index = index
        self.latency_at = -math.inf
        """When the model last got a latency request."""
        self.promise_s = math.inf
        """Time per token promised to it."""
        self.ttft_promise_s = math.inf
        self.usual_prompt = 512.0
        """Uncached prompt tokens of a latency request, a running mean."""
        self.looked_at: list[Scored] = []
        """What the last choice was made from, for ``explain``."""
        self._rng = rng
        self._lent = lent
        """Accelerators that are left to embedding calls while others will do."""

    def saw_latency(
        self, request: ScheduledRequest, uncached: float, now: float, *, usual: bool = True
    ) -> None:
        """A latency request has been sent to some engine; ``usual``: its prompt tells of others."""
        self.latency_at = now
        self.promise_s, self.ttft_promise_s = request.tpot_slo_s, request.ttft_slo_s
        if usual:
            self.usual_prompt += 0.05 * (uncached - self.usual_prompt)

    def choose(
        self,
        request: ScheduledRequest,
        loads: Iterable[EngineLoad],
        now: float,
        *,
        over: float = 0.0,
    ) -> tuple[EngineLoad, float] | None:
        """An engine that takes the request now and what of its prompt is uncached there, or None.

        Args:
            loads: the candidates; they are brought up to date, and the ones that cannot take it are
                sorted out here.
            over: its tenant takes more than its share, by so much (0 to 1): it leaves room to the
                others.
        """
        info = request.info
        prefix = info.prefix if self.parameters.prefix else ()
        cached = self.index.cached_by_engine(prefix) if prefix else _NONE_CACHED
        prompt = float(info.prompt_tokens)
        kv = prompt + (info.output_estimate or DEFAULT_OUTPUT)
        batch = request.band is Band.BATCH
        if self._lent:
            loads = self._not_lent(loads, now)
        if batch:
            scored = self._score_batch(loads, prompt, kv, cached, now)
        else:
            scored = self._score_latency(loads, prompt, kv, cached, now)
        self.looked_at = scored
        if (
            request.tpot_slo_s == math.inf
            and scored
            and not (batch or over or request.tried)
            and not any(one[0].batch_preferred for one in scored)
        ):
            return self._best(scored)
        if over:
            scored = self._with_room(scored, kv, over, now)
        if request.tried:
            scored = [one for one in scored if one[0].entry.name not in request.tried] or scored
        if not scored:
            return None
        return self._best(scored) if batch else self._best_kept(request, scored, kv, now)

    def _best_kept(
        self, request: ScheduledRequest, scored: list[Scored], kv: float, now: float
    ) -> tuple[EngineLoad, float] | None:
        """The best engine where a latency request's promise holds; engines that prefer batch work
        are left to it while others do."""
        others = [one for one in scored if not one[0].batch_preferred]
        for group in (others, scored) if len(others) < len(scored) else (scored,):
            left = group
            while left:
                load, uncached = self._best(left)
                if self._keeps_promise(load, request, uncached, kv, now) and (
                    group is scored or load.ttft(uncached) <= self._first_token_by_s(request, load)
                ):
                    return load, uncached
                left = [one for one in left if one[0] is not load]
        if not self._is_urgent(request, now):
            return None
        late, bend = now >= request.due, self.parameters.bend * request.tpot_slo_s
        paces = [(one, one[0].tpot_with(now, one[2], kv)) for one in scored]
        least = [(one[0], pace, one[2]) for one, pace in paces if late or pace <= bend]
        return self._best(least) if least else None

    def _not_lent(self, loads: Iterable[EngineLoad], now: float) -> Collection[EngineLoad]:
        """Those whose accelerators are not left to embedding calls; if there is none, all."""
        kept: list[EngineLoad] = []
        lent: list[EngineLoad] = []
        for load in loads:
            (lent if load.entry.spec.accelerator in self._lent else kept).append(load)
        if not kept:
            return lent
        for load in lent:
            load.look(now)
        return kept

    # -- may it go there ------------------------------------------------------------------

    def _may_take(self, load: EngineLoad, kv: float) -> bool:
        entry = load.entry
        if entry.leaving or entry.state not in (EngineState.READY, EngineState.WARMING):
            return False
        inside = len(entry.running) + len(entry.batches)
        if inside >= entry.spec.max_concurrency or inside >= load.window.size:
            return False
        if load.waiting > self.parameters.waiting and load.pending > load.budget:
            return False
        return load.context + kv <= load.kv_limit * load.kv_tokens or not inside

    def _keeps_promise(
        self, load: EngineLoad, request: ScheduledRequest, uncached: float, kv: float, now: float
    ) -> bool:
        if not self.parameters.hold or request.tpot_slo_s == math.inf or not load.model.known:
            return True
        promise = min(request.tpot_slo_s, load.tightest_tpot())
        return not load.running or load.tpot_with(now, uncached, kv) <= promise

    def _first_token_by_s(self, request: ScheduledRequest, load: EngineLoad) -> float:
        slo_s = request.ttft_slo_s
        return slo_s if slo_s < math.inf else self._ttft_promise_s(load)

    def _with_room(self, scored: list[Scored], kv: float, over: float, now: float) -> list[Scored]:
        """Engines where another request leaves room to those that come after it: the more, the
        further its tenant is over its share."""
        parameters = self.parameters
        limit = (1.0 - over * (1.0 - parameters.over_ttft)) * self.ttft_promise_s
        tpot_share = 1.0 - over * (1.0 - parameters.over_tpot)
        crowded = sum(load.ttft(self.usual_prompt) > limit for load, _, _ in scored)
        may_crowd = crowded < max(1, int(parameters.over_engines * len(scored)))
        kept = []
        for one in scored:
            load, _, uncached = one
            if load.batch or not load.running or not load.model.known:
                # Batch work inside gives way first: its gate has kept room.
                kept.append(one)
                continue
            if load.tpot_with(now, uncached, kv + load.growth) > tpot_share * min(
                load.tightest_tpot(), self.tpot_promise_s(load)
            ):
                continue
            if load.ttft(self.usual_prompt + uncached) <= limit or (
                may_crowd and load.ttft(self.usual_prompt) <= limit
            ):
                kept.append(one)
        return kept

    def _is_urgent(self, request: ScheduledRequest, now: float) -> bool:
        slack = request.due - now
        return slack < self.parameters.last_resort * (request.due - request.arrived)

    def _takes_batch(self, load: EngineLoad, uncached: float, kv: float, now: float) -> bool:
        parameters = self.parameters
        if not parameters.gate:
            return True
        if load.batch_preferred and not load.latency:
            return True
        if not load.latency and now - self.latency_at > RECENT_LATENCY_S:
            return True
        if load.batch_at is None:
            load.batch_at = now
        is_ready = load.entry.state is EngineState.READY and not load.window.late
        if is_ready and not load.batch and now - load.batch_at >= BATCH_EVERY_S:
            return True
        if not load.model.known:
            # One alone harms nobody, and shows how fast the engine is.
            return not load.running
        if load.batch >= load.window.batch:
            return False
        tightest = min(load.tightest_tpot(), self.tpot_promise_s(load))
        if load.tpot_with(now, uncached, kv) > load.window.gate * tightest:
            return False
        return load.ttft(uncached + self.usual_prompt) <= (
            parameters.ttft_gate * self._ttft_promise_s(load)
        )

    def tpot_promise_s(self, load: EngineLoad) -> float:
        """What batch work must leave to latency requests: the promise, else twice the time per
        token that they would have alone."""
        if self.promise_s < math.inf:
            return self.promise_s
        return max(_DEFAULT_TPOT_S, 2.0 * load.model.iteration_s(1, 1000.0))

    def _ttft_promise_s(self, load: EngineLoad) -> float:
        if self.ttft_promise_s < math.inf:
            return self.ttft_promise_s
        alone = load.model.ttft_s(0.0, self.usual_prompt, 0, 0.0, load.budget)
        return max(_DEFAULT_TTFT_S, 3.0 * alone)

    # -- how good is it -------------------------------------------------------------------

    def _score_latency(
        self,
        loads: Iterable[EngineLoad],
        prompt: float,
        kv: float,
        cached: Mapping[str, float],
        now: float,
    ) -> list[Scored]:
        """Those that may take a latency request.

        EngineLoad.look, EngineModel.ttft_s and :meth:`_may_take` are written out here, as this runs
        for each engine at each dispatch: what they share is worked out once.
        """
        parameters = self.parameters
        most_waiting, harm, by_price = parameters.waiting, parameters.harm, parameters.price
        scored: list[Scored] = []
        uncached = max(1.0, prompt)
        all_known = True
        for load in loads:
            if load.assumed:
                load.assume(now)
            if load.neighbours:
                load.share(now)
            if load.stale:
                load.measure()
            pending = load.prefill
            if pending > 0.0:
                passed, front = (now - load.front_at) / load.token_s, load.front
                pending -= passed if passed < front else front
            else:
                pending = 0.0
            load.pending = pending
            entry = load.entry
            state = entry.state
            if (state is not _READY and state is not _WARMING) or entry.leaving:
                continue
            inside = len(entry.running) + len(entry.batches)
            if inside and (
                inside >= load.window.size  # never more than the engine's own limit
                or load.context + kv > load.kv_limit * load.kv_tokens
            ):
                continue
            budget, model = load.budget, load.model
            if pending > budget and load.waiting > most_waiting:
                continue
            if cached:
                uncached = max(1.0, prompt - cached.get(entry.spec.name, 0.0))
            if model.known and not by_price:
                tokens = pending + uncached
                ttft = model.kt * (model.a * tokens + load.step_s * (1.0 + tokens / budget))
                score = load.stretch * ttft * (1.0 + harm * load.latency)
            elif by_price:
                score = entry.spec.price * model.a * uncached
            else:
                all_known, score = False, 0.0
            scored.append((load, score, uncached))
        if all_known:
            return scored
        # Seconds beside LMetric's product say nothing: engines that are known would get everything.
        return [
            (load, (load.pending + uncached + 1.0) * (load.running + 1), uncached)
            for load, _, uncached in scored
        ]

    def _score_batch(
        self,
        loads: Iterable[EngineLoad],
        prompt: float,
        kv: float,
        cached: Mapping[str, float],
        now: float,
    ) -> list[Scored]:
        """Those that take a batch request."""
        scored: list[Scored] = []
        for load in loads:
            if load.assumed or load.prefill or load.neighbours:
                load.look(now)
            if not self._may_take(load, kv):
                continue
            uncached = max(1.0, prompt - cached.get(load.entry.spec.name, 0.0))
            if self._takes_batch(load, uncached, kv, now):
                scored.append((load, self._batch_score(load), uncached))
        return scored

    @staticmethod
    def _batch_score(load: EngineLoad) -> float:
        fullness = load.running / load.window.size
        return -fullness - (2.0 if load.batch_preferred else 0.0)

    def _best(self, scored: list[Scored]) -> tuple[EngineLoad, float]:
        if len(scored) == 1:
            load, _, uncached = scored[0]
            return load, uncached
        scores = [one[1] for one in scored]
        least = min(scores)
        limit = least + abs(least) * self.parameters.near + 1e-9
        if sorted(scores)[1] > limit:
            load, _, uncached = scored[scores.index(least)]
        else:
            load, _, uncached = self._rng.choice([one for one in scored if one[1] <= limit])
        return load, uncached
