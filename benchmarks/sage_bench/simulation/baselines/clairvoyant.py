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
from sage_bench.simulation.baselines.foresight import Future, LendingPlan
from sage_bench.simulation.step_profile import EmbeddingProfile
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Dispatch,
    Done,
    EngineAdded,
    EngineSpec,
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


class _EmbeddingSite:
    __slots__ = ("calls", "free_at", "name", "number")

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.calls = 0
        self.free_at = 0.0


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
        self._plan: LendingPlan | None = None
        self._llms: list[tuple[int, str, ForeseenEngine]] = []
        self._sites: list[_EmbeddingSite] = []
        self._waiting: list[Foreseen] = []
        self._calls: deque[tuple[RequestInfo, float]] = deque()
        """Embedding calls and when each came."""
        self._cost_s: dict[str, float] = {}
        self._where: dict[str, ForeseenEngine | _EmbeddingSite] = {}
        self._profile = EmbeddingProfile(0.0, 0.0)
        self._handlers = {
            Arrival: self._on_arrival,
            FirstToken: self._on_first_token,
            Progress: self._on_progress,
            Done: self._on_done,
            EngineAdded: self._on_engine_added,
            Timer: self._on_timer,
        }

    # -- events ---------------------------------------------------------------------------

    def _on_engine_added(self, event: EngineAdded) -> list[Action]:
        self._specs.append(event.spec)
        return []

    def _on_arrival(self, event: Arrival) -> list[Action]:
        plan = self._plan or self._make_plan()
        info = event.request
        if info.kind == "embedding":
            if (info.ttft_slo_s or math.inf) < 1.0:
                self._calls.appendleft((info, self.now))
            else:
                self._calls.append((info, self.now))
            self._cost_s[info.request_id] = self._profile.service_s(info.inputs)
            return [*self._send_calls(plan), SetTimer(self.now + _TICK_S)]
        one = Foreseen(
            info.request_id,
            self.now,
            info.prompt_tokens,
            max(1, info.output_estimate or 1),
            info.ttft_slo_s or math.inf,
            info.tpot_slo_s or math.inf,
        )
        self._waiting.append(one)
        return [*self._place(plan), SetTimer(self.now + _TICK_S)]

    def _on_timer(self, _: Timer) -> list[Action]:
        plan = self._plan
        if plan is None:
            return []
        actions = [*self._send_calls(plan), *self._place(plan)]
        if self._calls or self._waiting:
            actions.append(SetTimer(self.now + _TICK_S))
        return actions

    def _on_first_token(self, event: FirstToken) -> list[Action]:
        engine = self._where[event.request_id]
        if isinstance(engine, ForeseenEngine):
            one = engine.inside[event.request_id]
            one.first_at = one.made_at = engine.prompt_began = self.now
            one.made = 1
        return []

    def _on_progress(self, event: Progress) -> list[Action]:
        engine = self._where[event.request_id]
        if isinstance(engine, ForeseenEngine):
            one = engine.inside[event.request_id]
            one.made += event.chunks
            one.made_at = self.now
        return []

    def _on_done(self, event: Done) -> list[Action]:
        where = self._where.pop(event.request_id)
        plan = self._plan or self._make_plan()
        if isinstance(where, ForeseenEngine):
            del where.inside[event.request_id]
            return self._place(plan)
        where.calls -= 1
        return self._send_calls(plan)

    # -- inside ---------------------------------------------------------------------------

    def _make_plan(self) -> LendingPlan:
        places = sorted({spec.accelerator or spec.name for spec in self._specs})
        number = {name: i for i, name in enumerate(places)}
        llms: list[tuple[int, EngineSpec]] = []
        embeddings: list[tuple[int, EngineSpec]] = []
        for spec in self._specs:
            if spec.profile is None:
                raise SettingsError(f"the clairvoyant has to know the profile of {spec.name!r}.")
            is_llm = spec.profile.c0 + spec.profile.b > 0
            (llms if is_llm else embeddings).append((number[spec.accelerator or spec.name], spec))
        first = embeddings[0][1].profile if embeddings else None
        if first is not None:
            self._profile = EmbeddingProfile(first.s0, first.alpha)
        until = self._future.calls[-1][0] if self._future.calls else 0.0
        demand = self._future.demand(self._profile, until + 60.0, self._ahead_s)
        plan = self._plan = LendingPlan(demand, len(places), self._round_up, self._pace)
        self._sites = [_EmbeddingSite(spec.name, at) for at, spec in embeddings]
        for at, spec in llms:
            assert spec.profile is not None
            engine = ForeseenEngine(spec.profile, partial(plan.stretch, at))
            self._llms.append((at, spec.name, engine))
        return plan

    def _send_calls(self, plan: LendingPlan) -> list[Action]:
        actions: list[Action] = []
        now = self.now
        used = {at: bool(engine.inside) for at, _, engine in self._llms}
        order = sorted(self._sites, key=lambda s: (s.calls, not plan.lent(s.number, now), s.number))
        for site in order:
            while self._calls and site.calls < _CALLS:
                info, arrived = self._calls[0]
                urgent = (info.ttft_slo_s or math.inf) < 1.0
                share = plan.share(site.number, now)
                alone = plan.lent(site.number, now) or not used.get(site.number, False)
                if not alone and (share <= 0.0 or (site.free_at > now and not urgent)):
                    break
                self._calls.popleft()
                cost = self._cost_s[info.request_id]
                slow = 2.0 if used.get(site.number, False) else 1.0
                if now + slow * cost > arrived + (info.ttft_slo_s or math.inf):
                    actions.append(Reject(info.request_id, 429, "late", "It would be late.", 1))
                    continue
                if not alone:
                    site.free_at = max(now, site.free_at) + cost / share
                site.calls += 1
                self._where[info.request_id] = site
                actions.append(Dispatch(info.request_id, site.name, 1))
        return actions

    def _place(self, plan: LendingPlan) -> list[Action]:
        actions: list[Action] = []
        now = self.now
        kept = []
        for one in sorted(self._waiting, key=lambda s: s.prompt + 10 * s.output):
            best: tuple[float, str, ForeseenEngine] | None = None
            for at, name, engine in self._llms:
                if plan.lent(at, now):
                    continue
                ended_by = plan.lent_at(at, now) + _GRACE_S
                view = engine.outlook(now, one, strict=self._strict)
                if view.first_at > one.arrived + 0.97 * one.ttft_s or view.ended_at > ended_by:
                    continue
                if any(not seq.doomed for seq in view.late):
                    self._doom(engine)
                    if any(not seq.doomed for seq in view.late):
                        continue
                # Who ends in time on an engine that will be lent leaves room on the others.
                score = view.first_at - now + 0.05 * len(engine.inside) + min(60.0, ended_by - now)
                if best is None or score < best[0]:
                    best = score, name, engine
            if best is not None:
                _, name, engine = best
                if all(seq.first_at is not None for seq in engine.inside.values()):
                    engine.prompt_began = now
                engine.inside[one.key] = one
                self._where[one.key] = engine
                actions.append(Dispatch(one.key, name, 1))
            elif now >= one.arrived + one.ttft_s:
                actions.append(Reject(one.key, 429, "late", "It would be late.", 1))
            else:
                kept.append(one)
        self._waiting = kept
        return actions

    def _doom(self, engine: ForeseenEngine) -> None:
        for seq in engine.outlook(self.now).late:
            seq.doomed = True
