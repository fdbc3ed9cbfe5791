"""Whatever happens, every arrival ends in exactly one way and no window is ever overrun.

The world is hostile: faults, duplicates, a clock that jumps back, absurd numbers, tenants and
promises that change while requests wait, policies that change while requests run, batches that
come back wrong, late, twice or never.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from sage_prefect.control_plane.event_bounds import is_measurable
from sage_prefect.control_plane.events import (
    Abort,
    AbortBatch,
    Action,
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    BatchDone,
    BatchFailed,
    Cancel,
    Dispatch,
    DispatchBatch,
    Done,
    EngineAdded,
    EngineGauges,
    EngineProfile,
    EngineRemoved,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Kind,
    Limits,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.ledger import EngineEntry
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

MODELS = ("m1", "m2", "m3")
ENGINES = ("e1", "e2", "e3")
TENANTS = ("t1", "t2", "t3")
SERVING = (EngineState.READY, EngineState.WARMING)
HOLDING = {name for name, policy in POLICIES.items() if issubclass(policy, HybridSchedulingPolicy)}
"""Policies that may keep a request back although an engine has a free slot."""
NAN: Any = math.nan
TOKENS: st.SearchStrategy[Any] = st.integers(0, 9000) | st.sampled_from([-1, 10**400, NAN])
WISH = st.none() | st.sampled_from([0.5, 2.0, 0.0, -1.0, NAN, math.inf])
PROFILES = st.none() | st.sampled_from(
    [
        EngineProfile(c0=0.03, a=6.5e-5, b=2.1e-4, g=1.6e-7),
        EngineProfile(s0=0.004, alpha=4e-6),
        EngineProfile(s0=1e308, alpha=1e300),
    ]
)
POLICY_NAMES = st.sampled_from(sorted(POLICIES))


class Conservation(RuleBasedStateMachine):
    """Plays driver and engines; keeps its own books and compares them with the manager's."""

    requests = Bundle("requests")

    @initialize(policy=POLICY_NAMES)
    def start(self, policy: str) -> None:
        self.limits = Limits(max_queued_requests=6, max_queued_bytes=50, queue_timeout_s=30)
        self.manager = ControlPlaneManager(policy, self.limits)
        self.now = 0.0
        self.timer: float | None = None
        self.counter = 0
        self.waiting: set[str] = set()
        self.running: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.windows: dict[str, int] = {}
        self.tenant_of: dict[str, str] = {}
        self.started_under: dict[str, tuple[int | None, int]] = {}
        self.inputs: dict[str, int] = {}
        """Of each embedding or rerank request: how many inputs are batched."""
        self.forms: dict[str, int | None] = {}
        self.answered: dict[str, set[int]] = {}
        self.batches: dict[int, tuple[str, list[tuple[str, int]]]] = {}
        """Inside engines: (engine, inputs and copies)."""

    # -- what the driver and the world do -------------------------------------------------

    @rule(
        target=requests,
        model=st.sampled_from((*MODELS, "unknown")),
        size=st.integers(0, 30),
        deadline=st.none() | st.floats(-5, 40) | st.just(NAN),
        tenant=st.sampled_from(TENANTS),
        band=st.sampled_from(Band),
        stream=st.booleans(),
        tokens=TOKENS,
        wish=WISH,
        prefix=st.lists(st.integers(0, 2), max_size=3),
    )
    def arrive(
        self,
        model: str,
        size: int,
        deadline: float | None,
        tenant: str,
        band: Band,
        stream: bool,
        tokens: Any,
        wish: float | None,
        prefix: list[int],
    ) -> str:
        self.counter += 1
        name = f"r{self.counter}"
        self.waiting.add(name)
        self.tenant_of[name] = tenant
        absolute = None if deadline is None else self.now + deadline
        info = RequestInfo(
            name,
            model,
            tenant=tenant,
            band=band,
            stream=stream,
            body_bytes=size,
            prompt_tokens=tokens,
            output_estimate=tokens,
            deadline=absolute,
            ttft_slo_s=wish,
            tpot_slo_s=wish,
            prefix=tuple(prefix),
        )
        self.feed(Arrival(info))
        return name

    @rule(
        target=requests,
        model=st.sampled_from(MODELS),
        lengths=st.lists(st.sampled_from([-1, 0, 5, 30, 700, 9000]), max_size=5),
        keyed=st.booleans(),
        form=st.sampled_from([None, 1, 1, 1, 2]),
        kind=st.sampled_from(["embedding", "embedding", "rerank"]),
        deadline=st.none() | st.floats(-1, 40),
        tenant=st.sampled_from(TENANTS),
        band=st.sampled_from(Band),
        wish=WISH,
    )
    def arrive_to_be_batched(
        self,
        model: str,
        lengths: list[int],
        keyed: bool,
        form: int | None,
        kind: Kind,
        deadline: float | None,
        tenant: str,
        band: Band,
        wish: float | None,
    ) -> str:
        self.counter += 1
        name = f"r{self.counter}"
        self.waiting.add(name)
        merge_key = form if kind == "embedding" else None
        self.inputs[name] = len(lengths) if merge_key is not None and lengths else 1
        self.forms[name], self.answered[name] = merge_key, set()
        self.tenant_of[name] = tenant
        info = RequestInfo(
            name,
            model,
            kind,
            tenant,
            band,
            body_bytes=7,
            prompt_tokens=sum(lengths),
            deadline=None if deadline is None else self.now + deadline,
            ttft_slo_s=wish,
            inputs=tuple(lengths),
            input_keys=tuple(10 * (form or 0) + size % 7 for size in lengths) if keyed else (),
            merge_key=merge_key,
        )
        self.feed(Arrival(info))
        return name

    @rule(data=st.data(), tokens=TOKENS | st.none())
    def answer_batch(self, data: st.DataObject, tokens: Any) -> None:
        if self.batches:
            self.end_batch(data.draw(st.sampled_from(sorted(self.batches))), tokens)

    def end_batch(self, batch_id: int, tokens: Any = 3) -> None:
        members = self.take_batch(batch_id)
        for name, index in members:
            self.answered[name].add(index)
        for name in {name for name, _ in members}:
            if len(self.answered[name]) == self.inputs[name]:
                self.waiting.remove(name)
                self.end(name, "done")
        self.feed(BatchDone(batch_id, tokens))
        self.feed(BatchDone(batch_id, tokens))  # a duplicate

    @rule(
        data=st.data(),
        retryable=st.booleans(),
        bad_input=st.booleans(),
        cause=st.sampled_from(FailureCause),
    )
    def fail_batch(
        self, data: st.DataObject, retryable: bool, bad_input: bool, cause: FailureCause
    ) -> None:
        if not self.batches:
            return
        batch_id = data.draw(st.sampled_from(sorted(self.batches)))
        engine = self.batches[batch_id][0]
        self.feed(BatchFailed(batch_id, "another", cause, retryable, bad_input))  # not there
        self.take_batch(batch_id)
        self.feed(BatchFailed(batch_id, engine, cause, retryable, bad_input))
        self.feed(BatchFailed(batch_id, engine, cause, retryable, bad_input))

    def take_batch(self, batch_id: int) -> list[tuple[str, int]]:
        """A batch leaves its engine; returns its inputs whose requests still live. A request with
        none inside an engine now waits until the manager says how it goes on."""
        _, members = self.batches.pop(batch_id)
        alive = [(name, index) for name, index in members if name not in self.ended]
        self.waiting.update({name for name, _ in alive} - self.batched())
        return alive

    def batched(self) -> set[str]:
        """Live requests with inputs inside engines."""
        inside = {name for _, members in self.batches.values() for name, _ in members}
        return {name for name in inside if name not in self.ended}

    @rule(name=requests)
    def arrive_again(self, name: str) -> None:
        """The same id while it lives: a duplicate, which is not another request."""
        if name not in self.ended:
            self.feed(Arrival(RequestInfo(name, "m1")))

    @rule(name=requests, tokens=TOKENS)
    def finish(self, name: str, tokens: Any = 3) -> None:
        was_running = self.running.pop(name, None)
        if was_running is not None:
            self.end(name, "done")
        self.feed(Done(name, tokens, tokens, tokens))

    @rule(name=requests, retryable=st.booleans(), cause=st.sampled_from(FailureCause))
    def fail(self, name: str, retryable: bool, cause: FailureCause) -> None:
        engine = self.running.pop(name, None)
        if engine is not None:
            self.waiting.add(name)  # until the manager says where it goes
        self.feed(Failed(name, engine or "e1", cause, retryable))

    @rule(name=requests)
    def cancel(self, name: str) -> None:
        if name in self.waiting or name in self.running or name in self.batched():
            self.waiting.discard(name)
            self.running.pop(name, None)
            self.end(name, "cancelled")
        self.feed(Cancel(name))

    @rule(name=requests, tokens=TOKENS)
    def chatter(self, name: str, tokens: Any) -> None:
        self.feed(FirstToken(name))
        self.feed(Progress(name, tokens))

    @rule(number=st.sampled_from([-1, 0, 10**9]))
    def answer_no_batch(self, number: int) -> None:
        self.feed(BatchDone(number))
        self.feed(BatchFailed(number, "e1", FailureCause.RESET, retryable=True))

    @rule(
        name=st.sampled_from(ENGINES),
        models=st.lists(st.sampled_from(MODELS), min_size=1, unique=True),
        window=st.integers(1, 3),
        profile=PROFILES,
        kv=st.none() | st.integers(1, 9000),
        cold=st.booleans(),
        most_inputs=st.none() | st.integers(1, 3),
        accelerator=st.none() | st.just("gpu"),
        driver=st.sampled_from(["openai", "sentence-transformers"]),
        price=st.sampled_from([1.0, 0.0, 1e308]),
    )
    def add_engine(
        self,
        name: str,
        models: list[str],
        window: int,
        profile: EngineProfile | None = None,
        kv: int | None = None,
        cold: bool = False,
        most_inputs: int | None = None,
        accelerator: str | None = None,
        driver: str = "openai",
        price: float = 1.0,
    ) -> None:
        spec = EngineSpec(
            name,
            tuple(models),
            window,
            driver,
            price=price,
            profile=profile,
            kv_tokens=kv,
            cold=cold,
            max_batch_inputs=most_inputs,
            accelerator=accelerator,
        )
        if is_measurable(spec):  # else the event changes nothing
            self.windows[name] = window
        self.feed(EngineAdded(spec))

    @rule(name=st.sampled_from(ENGINES), abort=st.booleans())
    def remove_engine(self, name: str, abort: bool) -> None:
        self.feed(EngineRemoved(name, abort))

    @rule(name=st.sampled_from(ENGINES), state=st.sampled_from(EngineState), gauge=WISH)
    def report(self, name: str, state: EngineState, gauge: float | None) -> None:
        self.feed(EngineReport(name, state, gauges=EngineGauges(gauge, gauge, gauge, gauge)))

    @rule(
        names=st.lists(st.sampled_from(TENANTS), unique=True),
        weight=st.sampled_from([0.5, 1.0, 4.0, 0.0, -1.0, NAN]),
        cap=st.none() | st.integers(0, 2),
    )
    def change_tenants(self, names: list[str], weight: float, cap: int | None) -> None:
        """Also: a tenant goes while its requests wait."""
        self.feed(TenantsChanged(tuple(TenantSpec(n, weight, cap, cap) for n in names)))

    @rule(band=st.sampled_from(Band), wish=WISH, age=st.none() | st.floats(0, 20))
    def change_band(self, band: Band, wish: float | None, age: float | None) -> None:
        self.feed(BandsChanged((BandSpec(band, wish, wish, 0.05, age, 0.5),)))

    @rule(policy=POLICY_NAMES)
    def switch(self, policy: str) -> None:
        before = self.manager.queued
        self.feed(PolicyChanged(policy))
        assert self.manager.policy.name == policy
        assert self.manager.queued <= before

    @rule(step=st.floats(-10, 40))
    def pass_time(self, step: float) -> None:
        self.now += step
        if self.timer is not None and self.now >= self.timer:
            self.timer = None
            self.feed(Timer())
        for request in self.manager.policy.pending():
            # Whoever has waited enough was told so by the timer that was asked for.
            assert request.give_up_at > self.manager._now
            assert self.manager._outages.end_of_wait(request, 10.0) > self.manager._now

    # -- what the manager answers ---------------------------------------------------------

    def feed(self, event: Event) -> None:
        for action in self.manager.handle(event, self.now):
            self.obey(action)

    def obey(self, action: Action) -> None:
        if isinstance(action, SetTimer):
            self.timer = action.at
        elif isinstance(action, Dispatch):
            assert action.request_id in self.waiting, "dispatched twice, or after its end"
            self.waiting.remove(action.request_id)
            tenant = self.tenant_of[action.request_id]
            spec = self.manager._tenants.get(tenant)
            limit = spec.max_running if spec is not None else None
            self.started_under[action.request_id] = (limit, self.running_of(tenant))
            self.running[action.request_id] = action.engine
            self.check_engine(action.engine)
        elif isinstance(action, DispatchBatch):
            self.obey_batch(action)
        elif isinstance(action, Reject):
            name = action.request_id
            # A request of several batches fails with the first one that does.
            failed = action.engine is not None and name in self.batched()
            assert name in self.waiting or failed, "rejected twice, or while it runs"
            self.waiting.discard(name)
            self.end(name, "rejected")
            assert action.status in (400, 404, 429, 502, 503, 504)
            assert action.message
        elif isinstance(action, AbortBatch):
            assert self.batches[action.batch_id][0] == action.engine
            if action.reason != "engine removed":  # else the driver answers it
                _, members = self.batches.pop(action.batch_id)
                assert all(name in self.ended for name, _ in members), "aborted, though wanted"
        else:
            assert isinstance(action, Abort)

    def obey_batch(self, action: DispatchBatch) -> None:
        assert action.batch_id not in self.batches, "two batches of one number"
        members = [
            member
            for part in action.parts
            for member in ((part.request_id, part.index), *part.copies)
        ]
        assert len(set(members)) == len(members)
        assert len({self.forms[name] for name, _ in members}) == 1, "unlike calls in one batch"
        before = self.batched()
        inside = {member for _, others in self.batches.values() for member in others}
        for name, index in members:
            assert name in self.waiting or name in before, "dispatched after its end"
            assert 0 <= index < self.inputs[name]
            assert index not in self.answered[name], "dispatched although it is answered"
            assert (name, index) not in inside, "dispatched twice"
        names = {name for name, _ in members}
        assert len(names) == 1 or all(self.forms[name] is not None for name in names)
        self.waiting -= names
        self.batches[action.batch_id] = (action.engine, members)
        entry = self.check_engine(action.engine)
        limit = entry.spec.max_batch_inputs
        assert limit is None or len(action.parts) <= limit

    def check_engine(self, name: str) -> EngineEntry:
        """The engine that has just got a call had room for it."""
        calls = list(self.running.values()) + [engine for engine, _ in self.batches.values()]
        assert calls.count(name) <= self.windows[name], "over the window"
        entry = self.manager.ledger.get(name)
        assert entry is not None
        assert entry.state in SERVING
        assert not entry.leaving
        return entry

    def end(self, name: str, how: str) -> None:
        assert name not in self.ended, "two ends"
        self.ended[name] = how

    # -- what must always hold ------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager: Any = self.manager
        assert manager.queued == len(self.waiting)
        batched = self.batched()
        assert not batched & self.waiting
        assert manager.running == len(self.running) + len(batched)
        alive = len(self.waiting) + len(self.running) + len(batched)
        assert alive + len(self.ended) == self.counter
        for name, engine in self.running.items():
            assert name in manager.ledger.get(engine).running
        for number, (engine, _) in self.batches.items():
            assert number in manager.ledger.get(engine).batches
        assert sum(len(entry.batches) for entry in manager.ledger) == len(self.batches)
        assert manager.queued_bytes >= 0
        if not self.waiting:
            assert manager.queued_bytes == 0
        for accounts in getattr(manager.policy, "_accounts", {}).values():
            assert math.isfinite(accounts.present)
            assert all(math.isfinite(one.virtual) for one in accounts.by_tenant.values())
        for load in getattr(manager.policy, "_loads", {}).values():
            assert load.running == len(load.entry.running)
            assert 0 <= load.waiting <= load.running
            assert load.running or load.context == load.prefill == 0.0

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Work conservation: no request is queued while an engine could take it."""
        if not hasattr(self, "manager"):
            return
        if self.manager.policy.name in HOLDING:
            return
        for request in self.manager.policy.pending():
            if self.is_at_its_limit(request.info.tenant):
                continue
            for entry in self.manager.ledger.pool(request.info.model).values():
                assert entry.room == 0, f"{request.request_id} waits beside {entry.name}"

    @invariant()
    def no_tenant_is_over_its_limit(self) -> None:
        """Since it was set: what ran before runs to its end."""
        for name, started in getattr(self, "started_under", {}).items():
            if name not in self.running:
                continue
            limit, ahead = started
            assert limit is None or ahead < limit, f"{name} was the {ahead + 1}th of {limit}"

    def is_at_its_limit(self, tenant: str) -> bool:
        spec = self.manager._tenants.get(tenant)
        if spec is None or spec.max_running is None:
            return False
        return self.running_of(tenant) >= spec.max_running

    def running_of(self, tenant: str) -> int:
        return sum(self.tenant_of[name] == tenant for name in self.running)

    def teardown(self) -> None:
        """With healthy engines and time, everything comes to its end."""
        if not hasattr(self, "manager"):
            return
        self.feed(TenantsChanged(()))
        for name in ENGINES:
            self.add_engine(name, list(MODELS), 3)
        for _ in range(self.counter + 1):
            for name in list(self.running):
                self.finish(name)
            while self.batches:
                self.end_batch(min(self.batches))
            self.pass_time(100.0)
        assert not self.manager._lane._queued_s
        assert not self.waiting
        assert self.manager.queued == self.manager.running == 0
        assert set(self.ended) == {f"r{i + 1}" for i in range(self.counter)}


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
