"""A scheduler that knows the future: how long each answer is and when embedding calls will come.

For comparison: no gateway can be it. It is bound by the same engines: what runs cannot move, and
embedding calls hold an accelerator. It lends accelerators by a plan made from the calls that will
come and empties them before; a chat goes to an engine only if neither it nor anybody inside will
miss a promise, as far as the engine's own rules tell; while it waits, those that cost the least go
first. Options are tuned with hindsight. Better ones than it may exist: it shows what knowledge is
worth, and no proof bounds it from above.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial

from sage_bench.simulation.baselines.base import Baseline
from sage_bench.simulation.baselines.foreseen_engine import Foreseen, ForeseenEngine
from sage_bench.simulation.baselines.foresight import SHARE, Future, LendingPlan
from sage_bench.simulation.step_profile import EmbeddingProfile
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineReport,
    EngineSpec,
    EngineState,
    Failed,
    FirstToken,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    Timer,
)

_TICK_S = 0.1
_GRACE_S = 3.0
"""An answer may go on so long on an accelerator that has been lent."""
_CALLS = 2
_URGENT_S = 1.0
_ATTEMPTS = 2
_IN_TIME = 0.97
"""Share of the promised time to first token that it uses."""
_CROWD_S = 0.05
"""What a request inside counts in the choice."""
_OUTPUT_COST = 10
"""Prompt tokens that cost about as much as one of an answer."""


class _Call:
    """An embedding call."""

    __slots__ = ("attempts", "cost_s", "due", "info", "urgent")

    def __init__(self, info: RequestInfo, now: float, cost_s: float) -> None:
        self.info, self.cost_s = info, cost_s
        slo_s = info.ttft_slo_s or math.inf
        self.due = now + slo_s
        self.urgent = slo_s <= _URGENT_S
        self.attempts = 0


class _EmbeddingSite:
    __slots__ = ("free_at", "inside", "name", "number")

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.inside: dict[str, _Call] = {}
        self.free_at = 0.0
        """When the calls that were sent have used up their share."""


class _LlmSite:
    __slots__ = ("engine", "name", "number")

    def __init__(self, name: str, number: int, engine: ForeseenEngine) -> None:
        self.name, self.number, self.engine = name, number, engine

    @property
    def inside(self) -> dict[str, Foreseen]:
        return self.engine.inside


class Clairvoyant(Baseline):
    """See the module.

    Args:
        future: what will be asked for.
        ahead_s: how long before calls come they are lent an accelerator.
        round_up: see :class:`LendingPlan`.
        pace: see :class:`LendingPlan`.
        strict: of the time per token promised, how much it uses.
    """

    name = "clairvoyant"
    foresees = True

    def __init__(
        self,
        future: Future | None = None,
        ahead_s: float = 4.0,
        round_up: float = 0.2,
        pace: float = 1.05,
        strict: float = 0.98,
    ) -> None:
        super().__init__()
        if future is None:
            raise SettingsError(
                "baseline 'clairvoyant' runs only in a simulation that tells it all."
            )
        self._future = future
        self._ahead_s = ahead_s
        self._round_up, self._pace, self._strict = round_up, pace, strict
        self._specs: list[EngineSpec] = []
        self._down: set[str] = set()
        self._plan: LendingPlan | None = None
        self._llms: list[_LlmSite] = []
        self._embeddings: list[_EmbeddingSite] = []
        self._waiting: list[Foreseen] = []
        self._calls: deque[_Call] = deque()
        self._where: dict[str, _LlmSite | _EmbeddingSite] = {}
        self._profile = EmbeddingProfile(0.0, 0.0)
        self._handlers = {
            Arrival: self._on_arrival,
            FirstToken: self._on_first_token,
            Progress: self._on_progress,
            Done: self._on_done,
            Failed: self._on_failed,
            Cancel: self._on_cancel,
            EngineAdded: self._on_engine_added,
            EngineReport: self._on_engine_report,
            Timer: lambda _: self._go_on(),
        }

    # -- events ---------------------------------------------------------------------------

    def _on_engine_added(self, event: EngineAdded) -> list[Action]:
        self._specs.append(event.spec)
        return []

    def _on_engine_report(self, event: EngineReport) -> list[Action]:
        if event.state is EngineState.READY:
            self._down.discard(event.engine)
        else:
            self._down.add(event.engine)
        return self._go_on()

    def _on_arrival(self, event: Arrival) -> list[Action]:
        self._make_plan()
        info = event.request
        if info.inputs:
            self._queue(_Call(info, self.now, self._profile.service_s(info.inputs)))
        else:
            output = max(1, info.output_estimate or 1)
            ttft_s, tpot_s = info.ttft_slo_s or math.inf, info.tpot_slo_s or math.inf
            self._waiting.append(
                Foreseen(info.request_id, self.now, info.prompt_tokens, output, ttft_s, tpot_s)
            )
        return self._go_on()

    def _on_first_token(self, event: FirstToken) -> list[Action]:
        site = self._where.get(event.request_id)
        if isinstance(site, _LlmSite):
            one = site.inside[event.request_id]
            one.first_at = one.made_at = site.engine.prompt_began = self.now
            one.made = 1
        return []

    def _on_progress(self, event: Progress) -> list[Action]:
        site = self._where.get(event.request_id)
        if isinstance(site, _LlmSite):
            one = site.inside[event.request_id]
            one.made += event.chunks
            one.made_at = self.now
        return []

    def _on_done(self, event: Done) -> list[Action]:
        self._leave(event.request_id)
        return self._go_on()

    def _on_failed(self, event: Failed) -> list[Action]:
        one = self._leave(event.request_id)
        if one is None:
            return []
        if not event.retryable or one.attempts >= _ATTEMPTS:
            return [
                Reject(event.request_id, 502, "engine_failed", event.message, None, event.engine)
            ]
        if isinstance(one, _Call):
            self._queue(one)
        else:
            self._waiting.append(one)
        return self._go_on()

    def _on_cancel(self, event: Cancel) -> list[Action]:
        key = event.request_id
        site = self._where.get(key)
        if site is not None:
            self._leave(key)
            return [Abort(key, site.name, "client gone"), *self._go_on()]
        self._waiting = [one for one in self._waiting if one.key != key]
        self._calls = deque(call for call in self._calls if call.info.request_id != key)
        return []

    # -- inside ---------------------------------------------------------------------------

    def _make_plan(self) -> None:
        if self._plan is not None:
            return
        places = sorted({spec.accelerator or spec.name for spec in self._specs})
        number = {name: i for i, name in enumerate(places)}
        loaded = [spec.profile for spec in self._specs if spec.profile and spec.profile.alpha > 0]
        if loaded:
            self._profile = EmbeddingProfile(loaded[0].s0, loaded[0].alpha)
        until = self._future.calls[-1][0] if self._future.calls else 0.0
        demand = self._future.demand(self._profile, until + 60.0, self._ahead_s)
        plan = self._plan = LendingPlan(demand, len(places), self._round_up, self._pace)
        for spec in self._specs:
            if spec.profile is None:
                raise SettingsError(f"the clairvoyant has to know the profile of {spec.name!r}.")
            at = number[spec.accelerator or spec.name]
            if spec.profile.alpha > 0:
                self._embeddings.append(_EmbeddingSite(spec.name, at))
            else:
                engine = ForeseenEngine(spec.profile, partial(plan.stretch, at))
                self._llms.append(_LlmSite(spec.name, at, engine))

    def _queue(self, call: _Call) -> None:
        if call.urgent:
            self._calls.appendleft(call)
        else:
            self._calls.append(call)

    def _leave(self, key: str) -> Foreseen | _Call | None:
        site = self._where.pop(key, None)
        if site is None:
            return None
        one = site.inside.pop(key)
        if isinstance(one, Foreseen):
            one.first_at, one.made = None, 0
        return one

    def _go_on(self) -> list[Action]:
        plan = self._plan
        if plan is None:
            return []
        actions = [*self._send_calls(plan), *self._place(plan)]
        if self._calls or self._waiting:
            actions.append(SetTimer(self.now + _TICK_S))
        return actions

    def _send_calls(self, plan: LendingPlan) -> list[Action]:
        actions: list[Action] = []
        now = self.now
        beside = {site.number for site in self._llms if site.inside}
        sites = [site for site in self._embeddings if site.name not in self._down]
        sites.sort(key=lambda s: (len(s.inside), not plan.lent(s.number, now), s.number))
        for site in sites:
            share = plan.share(site.number, now)
            shared = site.number in beside
            paced = shared and not plan.lent(site.number, now)
            while self._calls and len(site.inside) < _CALLS:
                call = self._calls[0]
                if paced and (share <= 0.0 or (site.free_at > now and not call.urgent)):
                    break
                self._calls.popleft()
                key = call.info.request_id
                if now + call.cost_s / (1.0 - SHARE if shared else 1.0) > call.due:
                    actions.append(_refused(key))
                    continue
                if paced:
                    site.free_at = max(now, site.free_at) + call.cost_s / share
                call.attempts += 1
                site.inside[key] = call
                self._where[key] = site
                actions.append(Dispatch(key, site.name, call.attempts))
        return actions

    def _place(self, plan: LendingPlan) -> list[Action]:
        actions: list[Action] = []
        now = self.now
        kept = []
        for one in sorted(self._waiting, key=_cost):
            site = self._best(one, plan)
            if site is not None:
                if all(seq.first_at is not None for seq in site.inside.values()):
                    site.engine.prompt_began = now
                one.attempts += 1
                site.inside[one.key] = one
                self._where[one.key] = site
                actions.append(Dispatch(one.key, site.name, one.attempts))
            elif now >= one.arrived + one.ttft_s:
                actions.append(_refused(one.key))
            else:
                kept.append(one)
        self._waiting = kept
        return actions

    def _best(self, one: Foreseen, plan: LendingPlan) -> _LlmSite | None:
        """Where neither it nor anybody inside misses a promise; None: nowhere now."""
        now = self.now
        best, least = None, math.inf
        for site in self._llms:
            if site.name in self._down or plan.lent(site.number, now):
                continue
            engine = site.engine
            ended_by = plan.lent_at(site.number, now) + _GRACE_S
            view = engine.outlook(now, one, strict=self._strict)
            if view.first_at > one.arrived + _IN_TIME * one.ttft_s or view.ended_at > ended_by:
                continue
            if any(not seq.doomed for seq in view.late):
                for seq in engine.outlook(now).late:
                    seq.doomed = True
                if any(not seq.doomed for seq in view.late):
                    continue
            # Who ends in time on an engine that will be lent leaves room on the others.
            score = view.first_at - now + _CROWD_S * len(site.inside) + min(60.0, ended_by - now)
            if score < least:
                best, least = site, score
        return best


def _cost(one: Foreseen) -> int:
    return one.prompt + _OUTPUT_COST * one.output


def _refused(key: str) -> Reject:
    return Reject(key, 429, "late", "It would be late.", 1)
