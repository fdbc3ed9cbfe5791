"""One engine under the hybrid policy: its model, its windows and what is inside it."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping

from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.events import Band, EngineProfile, EngineSpec, EngineState
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.window import Window, WindowRules

PREFILL_RATE_TAU_S = 4.0
DEFAULT_BUDGET = 8192
DEFAULT_KV_TOKENS = 1 << 40
RECENT_LATENCY_S = 10.0
SHARE, SHARED_TAU_S = 0.5, 1.0
"""An engine's part of an accelerator's time while its neighbour is busy too, split evenly."""
_NO_PROMISE = math.inf


class EngineLoad:
    """Counts, predictions and windows of one engine. Times in seconds, lengths in tokens.

    Args:
        entry: the engine's entry in the ledger.
        rules: of its windows.
        fleet: the prior of its model where it has no profile.
    """

    __slots__ = (
        "_dirty_at",
        "_promises",
        "_rate",
        "_rate_at",
        "_shared",
        "_shared_at",
        "assumed",
        "batch",
        "batch_at",
        "batch_preferred",
        "budget",
        "context",
        "entry",
        "front",
        "front_at",
        "growth",
        "kv_limit",
        "kv_tokens",
        "latency",
        "model",
        "neighbours",
        "pending",
        "preemptions",
        "prefill",
        "sampled_at",
        "shares",
        "stale",
        "step_s",
        "stretch",
        "token_s",
        "waiting",
        "window",
    )

    def __init__(
        self, entry: EngineEntry, rules: WindowRules, fleet: EngineProfile | None = None
    ) -> None:
        spec = entry.spec
        self.entry = entry
        self.model = EngineModel(spec.profile, fleet)
        cold = entry.state in (EngineState.COLD, EngineState.WARMING)
        self.window = Window(spec.max_concurrency, rules, cold=cold)
        self.kv_tokens = float(spec.kv_tokens or DEFAULT_KV_TOKENS)
        self.kv_limit = 0.92
        self.budget = float(spec.max_batch_tokens or DEFAULT_BUDGET)
        self.latency = 0
        """Requests of bands before BATCH inside it."""
        self.batch = 0
        self.batch_at: float | None = None
        """When batch work was last inside, or first asked for it."""
        self.prefill = 0.0
        """Uncached prompt tokens of requests without a first token."""
        self.pending = 0.0
        """What is left of them, when last looked at: the first in line is partly through."""
        self.front = 0.0
        """Tokens of the first in line, when its turn came."""
        self.front_at = -math.inf
        self.waiting = 0
        """Requests without a first token."""
        self.context = 0.0
        self.growth = 0.0
        """Tokens that the answers under way will probably still hold."""
        self.batch_preferred = False
        self.stale = True
        """What is inside, or the model, has changed since :meth:`measure`."""
        self.step_s = self.token_s = 0.0
        """By the model: a step with what is inside, and a token of prefill with its share of it."""
        self.neighbours: tuple[EngineEntry, ...] = ()
        """Embedding engines on its accelerator."""
        self.shares: Mapping[str, float] = {}
        """What they get of an accelerator's time, where that is limited."""
        self.stretch = 1.0
        """By how much they slow it down: the model is of the engine alone."""
        self._shared = 0.0
        self._shared_at = -math.inf
        self.sampled_at = -math.inf
        """When the model last learned from a stream's pace here: its neighbours show the same."""
        self.preemptions = math.nan
        """The engine's counter when it last said so; NaN: not yet, and nothing is above that."""
        self._rate = 0.0
        self._rate_at = -math.inf
        self._dirty_at = -math.inf  # when a prompt was last on its way
        self._promises: Counter[float] = Counter()
        # Answers that do not stream show no first token: it is taken to come when predicted.
        self.assumed: list[tuple[float, int, ScheduledRequest, float]] = []

    # -- reading --------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests inside."""
        return self.latency + self.batch

    @property
    def is_well(self) -> bool:
        """Whether its times say how fast it is, and its cache is what was sent to it."""
        return self.entry.state not in (EngineState.SUSPECT, EngineState.DOWN)

    def prefill_rate(self, now: float) -> float:
        """Uncached prompt tokens per second sent here, exponentially forgotten."""
        if self._rate <= 0.0:
            return 0.0
        return self._rate * math.exp((self._rate_at - now) / PREFILL_RATE_TAU_S)

    def is_clean(self, since: float) -> bool:
        """Whether nothing but decoding has gone on since then, and nothing was learned of it."""
        return self.prefill <= 0.0 and self._dirty_at <= since and self.sampled_at <= since

    def tightest_tpot(self) -> float:
        """The tightest promise on time per token among the requests inside; infinity: none."""
        return min(self._promises) if self._promises else _NO_PROMISE

    def tpot_with(self, now: float, prompt: float, kv: float) -> float:
        """Predicted time per token once a request of ``prompt`` uncached tokens is inside."""
        rate = self.prefill_rate(now) + prompt / PREFILL_RATE_TAU_S
        n = self.latency + self.batch + 1
        return self._lasting_stretch() * self.model.tpot_s(n, self.context + kv, rate)

    def _lasting_stretch(self) -> float:
        """By how much its neighbours will slow an answer down: on average, not just now."""
        if not self.neighbours:
            return 1.0
        share = self.shares.get(self.entry.spec.accelerator or "")
        return self.stretch if share is None else 1.0 / (1.0 - min(SHARE, share))

    def ttft(self, prompt: float) -> float:
        """Predicted time to first token of a prompt with so many uncached tokens, sent now."""
        n = self.latency + self.batch
        ttft = self.model.ttft_s(self.pending, prompt, n, self.context, self.budget)
        return self.stretch * ttft

    def respect(self, spec: EngineSpec) -> None:
        """The engine has (perhaps) another specification."""
        self.window.limit(spec.max_concurrency)
        self.kv_tokens = float(spec.kv_tokens or DEFAULT_KV_TOKENS)
        self.budget = float(spec.max_batch_tokens or DEFAULT_BUDGET)
        self.stale = True

    # -- books ----------------------------------------------------------------------------

    def enter(
        self,
        request: ScheduledRequest,
        uncached: float,
        kv: float,
        now: float,
        growth: float = 0.0,
    ) -> None:
        """A request is sent here.

        Args:
            uncached: tokens of its prompt to compute.
            kv: tokens that it holds from the start.
            growth: tokens that it will probably come to hold besides.
        """
        request.growth = growth
        self.growth += growth
        request.uncached = uncached
        request.context = kv
        if not self.waiting:
            self.front, self.front_at, self.pending = uncached, now, 0.0
        if self.waiting or self.neighbours:
            self.look(now)
        # Nothing ahead is a measurement of prefill alone: a guess of nothing is not.
        request.prefill_ahead = max(1.0, self.pending) if self.waiting else 0.0
        request.load_at_dispatch = (self.latency + self.batch, self.context)
        request.dispatched_at = now
        request.prefilling = True
        if not request.info.stream:
            at = now + self.ttft(uncached)
            heapq.heappush(self.assumed, (at, request.seq, request, now))
        self.stale = True
        self.prefill += uncached
        self.pending += uncached
        self.waiting += 1
        self.context += kv
        more = uncached / PREFILL_RATE_TAU_S
        if self._rate > 0.0:
            more += self._rate * math.exp((self._rate_at - now) / PREFILL_RATE_TAU_S)
        self._rate, self._rate_at = more, now
        if request.band is Band.BATCH:
            self.batch += 1
            self.batch_at = now
        else:
            self.latency += 1
            if request.tpot_slo_s < _NO_PROMISE:
                self._promises[request.tpot_slo_s] += 1
        window = self.window
        if self.latency + self.batch >= window.size - 1:
            window.full = True
        if self.batch >= window.batch:
            window.full_batch = True

    def look(self, now: float) -> None:
        """Bring up to date what only time tells."""
        if self.assumed:
            self.assume(now)
        if self.neighbours:
            self.share(now)
        if self.prefill <= 0.0:
            self.pending = 0.0
            return
        if self.stale:
            self.measure()
        self.pending = self.prefill - min(self.front, (now - self.front_at) / self.token_s)

    def measure(self) -> None:
        """Bring ``step_s`` and ``token_s`` up to date."""
        model = self.model
        self.step_s = step = (
            model.c0 + model.b * (self.latency + self.batch) + model.g * self.context
        )
        self.token_s = self.stretch * model.kt * (model.a + step / self.budget)
        self.stale = False

    def share(self, now: float) -> None:
        """Follow how much of the time its neighbours are busy."""
        busy = 1.0 if any(entry.in_flight for entry in self.neighbours) else 0.0
        old = math.exp((self._shared_at - now) / SHARED_TAU_S)
        self._shared_at = now
        self._shared = old * self._shared + (1.0 - old) * busy
        # Of the time, not of the tokens, it was busy: fewer tokens are made while it is.
        self.stretch = 1.0 / (1.0 - SHARE * self._shared)
        self.stale = True

    def assume(self, now: float) -> None:
        """Take the prompts to be through whose time has come and that will not say so."""
        while self.assumed and self.assumed[0][0] <= now:
            _, _, request, sent_at = heapq.heappop(self.assumed)
            if request.dispatched_at == sent_at and request.engine == self.entry.name:
                self.first_token(request, now)

    def first_token(self, request: ScheduledRequest, now: float) -> None:
        """Its prompt is through."""
        if not request.prefilling:
            return
        request.prefilling = False
        self.waiting -= 1
        self.prefill = max(0.0, self.prefill - request.uncached) if self.waiting else 0.0
        self.pending = self.prefill
        # Engines take prompts in order; whose turn it is now is not kept: one of mean length.
        self.front = self.prefill / self.waiting if self.waiting else 0.0
        self.front_at = now
        self._dirty_at = now

    def grow(self, request: ScheduledRequest, tokens: int) -> None:
        """Its answer has become longer."""
        self.stale = True
        request.context += tokens
        self.context += tokens
        if request.growth:
            self._shrink_growth(request, min(request.growth, float(tokens)))

    def leave(self, request: ScheduledRequest, now: float) -> None:
        """It has ended here, well or not."""
        if request.prefilling:
            self.first_token(request, now)
        self.stale = True
        self.context = max(0.0, self.context - request.context)
        request.context = 0.0
        if request.growth:
            self._shrink_growth(request, request.growth)
        if request.band is Band.BATCH:
            self.batch -= 1
            self.batch_at = now
            return
        self.latency -= 1
        promise = request.tpot_slo_s
        if promise == _NO_PROMISE:
            return
        if self._promises[promise] <= 1:
            del self._promises[promise]
        else:
            self._promises[promise] -= 1

    def _shrink_growth(self, request: ScheduledRequest, tokens: float) -> None:
        request.growth -= tokens
        self.growth = max(0.0, self.growth - tokens)

    # -- what engines say -------------------------------------------------------------------

    def saw_preemptions(self, count: float) -> None:
        """The engine's counter of preempted requests."""
        if count > self.preemptions:
            self.window.preempted()
            self.kv_limit = 0.88
        self.preemptions = count
